"""Tiny models of vision and language, with random weights, and what their processors make of photographs."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import skimage
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from models import TINY, randomize

CAT = Image.open(Path(skimage.data_dir, "chelsea.png")).convert("RGB")
CUP = Image.open(Path(skimage.data_dir, "coffee.png")).convert("RGB").resize(CAT.size)
IMAGE = 119  # the token in whose place an image's tokens are put
VISION = {k: v for k, v in TINY.items() if k != "num_labels"}
TEXT = dict(
    vocab_size=120,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=24,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
PERCEIVER = dict(
    hidden_size=48,
    resampler_n_latents=4,
    resampler_depth=1,
    resampler_n_heads=2,
    resampler_head_dim=24,
    num_key_value_heads=1,
)
TALL_AND_WIDE = [[32, 64], [64, 32], [64, 64]]  # pixels, that images may be cut into


def vision(model_type: str, **more: Any) -> dict[str, Any]:
    return dict(model_type=model_type, **VISION, **more)


def text(model_type: str) -> dict[str, Any]:
    return dict(model_type=model_type, **TEXT)


def pillow(family: str, name: str, **options: Any) -> BaseImageProcessor:
    """An image processor of transformers that needs no torchvision."""
    module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    return getattr(module, f"{name}ImageProcessorPil")(**options)


SQUARE = dict(height=32, width=32)
CROPPED = dict(size=dict(shortest_edge=32), crop_size=SQUARE)


@dataclass(frozen=True)
class Vlm:
    """`cls` of transformers; its processor; and where its tower is, of which class."""

    cls: str
    config: dict[str, Any]
    processor: Callable[[], BaseImageProcessor]
    tower: str
    type: str
    given: tuple[str, ...] = ("pixel_values",)  # what of the processor's result the model takes

    def model(self) -> PreTrainedModel:
        cls = getattr(transformers, self.cls)
        config = cls.config_class(**self.config)
        return randomize(cls(config)).eval().requires_grad_(False)

    def asked(self, model: PreTrainedModel, *photographs: Image.Image) -> dict[str, Tensor]:
        """The arguments of generate: for each photograph the same prompt behind its tokens."""
        made = self.processor()([[p] for p in photographs], return_tensors="pt")
        given = {name: made[name] for name in self.given}
        features = model.get_image_features(**given).pooler_output
        rows = sum(f.numel() // f.shape[-1] for f in features)
        words = torch.arange(20, 25)
        prompt = torch.cat((torch.full((rows // len(photographs),), IMAGE), words))
        prompt = prompt.expand(len(photographs), -1).contiguous()
        return {**given, "input_ids": prompt, "attention_mask": torch.ones_like(prompt)}


VLMS: dict[str, Vlm] = {
    "paligemma": Vlm(
        "PaliGemmaForConditionalGeneration",
        dict(
            vision_config=vision("siglip_vision_model", vision_use_head=False),
            text_config=text("gemma"),
            image_token_index=IMAGE,
            projection_dim=48,
            hidden_size=48,
            vocab_size=120,
        ),
        lambda: pillow("siglip", "Siglip", size=SQUARE),
        "model.vision_tower",
        "SiglipVisionModel",
    ),
    "llava": Vlm(
        "LlavaForConditionalGeneration",
        dict(
            vision_config=vision("clip_vision_model"),
            text_config=text("llama"),
            image_token_index=IMAGE,
            image_seq_length=16,
        ),
        lambda: pillow("clip", "CLIP", **CROPPED),
        "model.vision_tower",
        "CLIPVisionModel",
    ),
    "llava next": Vlm(
        "LlavaNextForConditionalGeneration",
        dict(
            vision_config=vision("clip_vision_model"),
            text_config=text("llama"),
            image_token_index=IMAGE,
            image_seq_length=16,
            image_grid_pinpoints=TALL_AND_WIDE,
        ),
        lambda: pillow("llava_next", "LlavaNext", **CROPPED, image_grid_pinpoints=TALL_AND_WIDE),
        "model.vision_tower",
        "CLIPVisionModel",
        given=("pixel_values", "image_sizes"),
    ),
    "llava onevision": Vlm(
        "LlavaOnevisionForConditionalGeneration",
        dict(
            vision_config=vision("siglip_vision_model", vision_use_head=False),
            text_config=text("qwen2"),
            image_token_index=IMAGE,
            video_token_index=118,
            image_grid_pinpoints=TALL_AND_WIDE,
        ),
        lambda: pillow(
            "llava_onevision", "LlavaOnevision", size=SQUARE, image_grid_pinpoints=TALL_AND_WIDE
        ),
        "model.vision_tower",
        "SiglipVisionModel",
        given=("pixel_values", "image_sizes"),
    ),
    "idefics2": Vlm(
        "Idefics2ForConditionalGeneration",
        dict(
            vision_config=VISION,
            text_config=text("mistral"),
            perceiver_config=PERCEIVER,
            image_token_id=IMAGE,
        ),
        lambda: pillow("idefics2", "Idefics2", size=dict(shortest_edge=16, longest_edge=32)),
        "model.vision_model",
        "Idefics2VisionTransformer",
        given=("pixel_values", "pixel_attention_mask"),
    ),
    **{
        name.lower(): Vlm(
            f"{name}ForConditionalGeneration",
            dict(
                vision_config=VISION,
                text_config=text("llama"),
                image_token_id=IMAGE,
                pad_token_id=0,
                scale_factor=2,
            ),
            lambda name=name: pillow(
                name.lower(), name, size=dict(longest_edge=64), max_image_size=dict(longest_edge=32)
            ),
            "model.vision_model",
            f"{name}VisionTransformer",
            given=("pixel_values", "pixel_attention_mask"),
        )
        for name in ("Idefics3", "SmolVLM")
    },
}
