"""The supported classes of transformers as tiny models, each with the sizes of images that its tests use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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

    vision: the config is inside another one, under this name.
    """

    cls: str
    config: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=lambda: SIZES)
    asks: Mapping[str, Any] = field(default_factory=dict)  # for other sizes than the native one
    options: Mapping[str, Any] = field(default_factory=dict)  # of the class itself
    vision: str = ""

    def model(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
        """Frozen, with random weights, in eval mode, with SDPA attention."""
        cls = getattr(transformers, self.cls)
        fields = {**TINY, **self.config}
        if self.vision:
            labels = fields.pop("num_labels")
            config = cls.config_class(**{self.vision: fields}, num_labels=labels)
        else:
            config = cls.config_class(**fields)
        model = randomize(cls(config, **self.options), seed).to(dtype).eval().requires_grad_(False)
        model.set_attn_implementation("sdpa")
        return model

    def inputs(self, size: str, batch: int = 2, dtype: torch.dtype = torch.float32) -> dict:
        """The arguments of a call by name."""
        pixels = images(batch, 3, *self.sizes[size], dtype=dtype)
        return {"pixel_values": pixels, **(self.asks if size != "native" else {})}

    def given(self, inputs: dict, pixels: Tensor) -> dict:
        """The arguments with these pixels [B, C, H, W] in the place of theirs."""
        return {**inputs, "pixel_values": pixels}


RESIZED = {"interpolate_pos_encoding": True}
STAGES = {"out_indices": [0, 2]}
REGISTERS = {"num_register_tokens": 4}

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
}


def double(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same in float64."""
    floating = {
        k: v.double() for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()
    }
    return {**inputs, **floating}
