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

    vision: the config is inside another one, under this name, beside the fields of `outer`.
    given_too: arguments of every call beside the pixels.
    """

    cls: str
    config: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=lambda: SIZES)
    asks: Mapping[str, Any] = field(default_factory=dict)  # for other sizes than the native one
    options: Mapping[str, Any] = field(default_factory=dict)  # of the class itself
    vision: str = ""
    outer: Mapping[str, Any] = field(default_factory=dict)
    given_too: Mapping[str, Any] = field(default_factory=dict)

    def model(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
        """Frozen, with random weights, in eval mode, with SDPA attention."""
        cls = getattr(transformers, self.cls)
        fields = {**TINY, **self.config}
        if self.vision:
            labels = fields.pop("num_labels")
            config = cls.config_class(**{self.vision: fields}, num_labels=labels, **self.outer)
        else:
            config = cls.config_class(**fields)
        model = randomize(cls(config, **self.options), seed).to(dtype).eval().requires_grad_(False)
        model.set_attn_implementation("sdpa")
        return model

    def inputs(self, size: str, batch: int = 2, dtype: torch.dtype = torch.float32) -> dict:
        """The arguments of a call by name."""
        pixels = images(batch, 3, *self.sizes[size], dtype=dtype)
        asks = self.asks if size != "native" else {}
        return {"pixel_values": pixels, **self.given_too, **asks}

    def given(self, inputs: dict, pixels: Tensor) -> dict:
        """The arguments with these pixels [B, C, H, W] in the place of theirs."""
        return {**inputs, "pixel_values": pixels}


RESIZED = {"interpolate_pos_encoding": True}
CLIP_TEXT = dict(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=16,
    eos_token_id=98,
)
CLIP = {"asks": RESIZED, "vision": "vision_config"}
TEXTS = torch.tensor([[3, 14, 15, 98], [92, 6, 98, 1], [5, 35, 89, 98]])

CASES: dict[str, Case] = {
    "vit": Case("ViTModel", asks=RESIZED),
    "vit classifier": Case("ViTForImageClassification", asks=RESIZED),
    "deit": Case("DeiTModel", asks=RESIZED),
    "deit classifier": Case("DeiTForImageClassification", asks=RESIZED),
    "deit with teacher": Case("DeiTForImageClassificationWithTeacher", asks=RESIZED),
    "ijepa": Case("IJepaModel", asks=RESIZED),
    "ijepa classifier": Case("IJepaForImageClassification", asks=RESIZED),
    "clip": Case("CLIPVisionModel", {"hidden_act": "gelu"}, asks=RESIZED),
    "clip projection": Case("CLIPVisionModelWithProjection", {"projection_dim": 48}, asks=RESIZED),
    "clip classifier": Case("CLIPForImageClassification", **CLIP),
    "clip with text": Case(
        "CLIPModel",
        **CLIP,
        outer={"text_config": CLIP_TEXT, "projection_dim": 48},
        given_too={"input_ids": TEXTS},
    ),
}


def double(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same in float64."""
    floating = {
        k: v.double() for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()
    }
    return {**inputs, **floating}
