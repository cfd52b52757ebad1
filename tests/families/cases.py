"""The supported classes of transformers as tiny models, each with the sizes of images that its tests use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from models import TINY, images, randomize

SIZES = {"native": (32, 32), "not square": (40, 24), "smallest": (8, 8)}


@dataclass(frozen=True)
class Case:
    """`cls` with `config` changed in models.TINY; `sizes` of images by name, which a call with `asks` takes.

    module: where `cls` is, below transformers.models, if transformers itself does not have it.
    vision: the config is inside another one, under this name; `text` too, if there is a text model.
    """

    cls: str
    config: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=lambda: SIZES)
    asks: Mapping[str, Any] = field(default_factory=dict)  # for other sizes than the native one
    options: Mapping[str, Any] = field(default_factory=dict)  # of the class itself
    module: str = ""
    vision: str = ""
    text: Mapping[str, Any] = field(default_factory=dict)
    naflex: bool = False  # takes rows of patches; a call's are padded

    def model(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
        """Frozen, with random weights, in eval mode, with SDPA attention."""
        owner = import_module(f"transformers.models.{self.module}") if self.module else transformers
        cls = getattr(owner, self.cls)
        fields = {**TINY, **self.config}
        if self.vision:
            labels = fields.pop("num_labels")
            inner = {self.vision: fields, **({"text_config": self.text} if self.text else {})}
            config = cls.config_class(**inner, num_labels=labels)
        else:
            config = cls.config_class(**fields)
        model = randomize(cls(config, **self.options), seed).to(dtype).eval().requires_grad_(False)
        model.set_attn_implementation("sdpa")
        return model

    def inputs(self, size: str, batch: int = 2, dtype: torch.dtype = torch.float32) -> dict:
        """The arguments of a call by name."""
        pixels = images(batch, 3, *self.sizes[size], dtype=dtype)
        texts = {"input_ids": TOKENS} if self.text else {}
        asks = self.asks if size != "native" else {}
        given = self.given({}, pixels)
        return {**(padded(given, 3) if self.naflex else given), **texts, **asks}

    def given(self, inputs: dict, pixels: Tensor) -> dict:
        """The arguments with these pixels [B, C, H, W] in the place of theirs."""
        return {**inputs, **(naflex(pixels) if self.naflex else {"pixel_values": pixels})}


TEXT = dict(
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=96,
    vocab_size=30,
    max_position_embeddings=8,
    projection_size=64,
)
TOKENS = torch.arange(24).view(3, 8)


def naflex(pixels: Tensor, patch: int = TINY["patch_size"]) -> dict[str, Tensor]:
    """Images [B, C, H, W] as Siglip2ImageProcessor gives them: patches in row order, of rows, columns, channels."""
    B, C, H, W = pixels.shape
    grid = H // patch, W // patch
    cut = pixels.reshape(B, C, grid[0], patch, grid[1], patch).permute(0, 2, 4, 3, 5, 1)
    rows = cut.reshape(B, grid[0] * grid[1], patch * patch * C)
    mask = torch.ones(rows.shape[:2], dtype=torch.int32)
    shapes = torch.tensor([grid] * B)
    return {"pixel_values": rows, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def padded(inputs: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """With `count` rows behind that do not count, and would be seen if they did."""
    rows, mask = inputs["pixel_values"], inputs["pixel_attention_mask"]
    more = 3 * images(len(rows), count, rows.shape[2], dtype=rows.dtype, seed=7)
    return {
        **inputs,
        "pixel_values": torch.cat((rows, more), 1),
        "pixel_attention_mask": torch.cat((mask, mask.new_zeros(len(mask), count)), 1),
    }


IN_TWO = dict(vision="vision_config", text=TEXT)
RESIZED = {"interpolate_pos_encoding": True}
STAGES = {"out_indices": [0, 2]}
REGISTERS = {"num_register_tokens": 4}

SIGLIP = dict(hidden_act="gelu_pytorch_tanh")
SIGLIP2 = dict(num_patches=16, **SIGLIP)
IDEFICS = {"idefics2": "Idefics2", "idefics3": "Idefics3", "smolvlm": "SmolVLM"}

CASES: dict[str, Case] = {
    "vit": Case("ViTModel", asks=RESIZED),
    "vit classifier": Case("ViTForImageClassification", asks=RESIZED),
    "deit": Case("DeiTModel", asks=RESIZED),
    "deit classifier": Case("DeiTForImageClassification", asks=RESIZED),
    "deit with teacher": Case("DeiTForImageClassificationWithTeacher", asks=RESIZED),
    "ijepa": Case("IJepaModel", asks=RESIZED),
    "ijepa classifier": Case("IJepaForImageClassification", asks=RESIZED),
    "dinov2": Case("Dinov2Model"),
    "dinov2 swiglu": Case(
        "Dinov2Model", {"use_swiglu_ffn": True, "num_attention_heads": 1, "qkv_bias": False}
    ),
    "dinov2 classifier": Case("Dinov2ForImageClassification"),
    "dinov2 backbone": Case("Dinov2Backbone", STAGES),
    "dinov2 with registers": Case("Dinov2WithRegistersModel", {"use_swiglu_ffn": True}),
    "dinov2 without registers": Case("Dinov2WithRegistersModel", {"num_register_tokens": 0}),
    "dinov2 with registers classifier": Case("Dinov2WithRegistersForImageClassification"),
    "dinov2 with registers backbone": Case(
        "Dinov2WithRegistersBackbone", {**STAGES, "apply_layernorm": False}
    ),
    "dinov3": Case("DINOv3ViTModel", REGISTERS),
    "dinov3 gated": Case(
        "DINOv3ViTModel", {**REGISTERS, "use_gated_mlp": True, "hidden_act": "silu"}
    ),
    "dinov3 other biases": Case(
        "DINOv3ViTModel",
        {"num_attention_heads": 1, "key_bias": True}
        | dict.fromkeys(("query_bias", "value_bias", "proj_bias", "mlp_bias"), False),
    ),
    "dinov3 head_dim 128": Case("DINOv3ViTModel", {"hidden_size": 128, "num_attention_heads": 1}),
    "dinov3 backbone": Case("DINOv3ViTBackbone", {**STAGES, **REGISTERS}),
    "clip": Case("CLIPVisionModel", {"hidden_act": "gelu"}, asks=RESIZED),
    "clip projection": Case("CLIPVisionModelWithProjection", {"projection_dim": 48}, asks=RESIZED),
    "clip classifier": Case("CLIPForImageClassification", asks=RESIZED, vision="vision_config"),
    # pools a text where its token of the largest id is
    "clip in two": Case(
        "CLIPModel", asks=RESIZED, vision="vision_config", text={**TEXT, "eos_token_id": 2}
    ),
    "siglip": Case("SiglipVisionModel", SIGLIP, asks=RESIZED),
    "siglip without head": Case(
        "SiglipVisionModel", {**SIGLIP, "vision_use_head": False}, asks=RESIZED
    ),
    "siglip classifier": Case(
        "SiglipForImageClassification", SIGLIP, asks=RESIZED, vision="vision_config"
    ),
    "siglip2": Case("Siglip2VisionModel", SIGLIP2, naflex=True),
    "siglip2 classifier": Case(
        "Siglip2ForImageClassification", SIGLIP2, vision="vision_config", naflex=True
    ),
    "siglip2 in two": Case("Siglip2Model", SIGLIP2, naflex=True, **IN_TWO),
    **{
        of: Case(f"{name}VisionTransformer", SIGLIP, module=f"{of}.modeling_{of}")
        for of, name in IDEFICS.items()
    },
    "siglip in two": Case("SiglipModel", SIGLIP, asks=RESIZED, **IN_TWO),
}


def double(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same in float64."""
    floating = {
        k: v.double() for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()
    }
    return {**inputs, **floating}
