"""End to end: photographs as JPEG files or as decoded bytes -> logits, through transformers' image processor.

A program of ours takes the bytes that the processor leaves before it rescales and normalizes: both are inside its
first kernel. The photographs are scikit-image's.
"""

import copy
import io
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from vit_fast import Normalization, ViT

from . import subjects
from .task import DTYPES, Program, Task, Unavailable, accelerated

if TYPE_CHECKING:
    from .case import Case

PHOTOGRAPHS = ("chelsea.png", "astronaut.png", "coffee.png", "rocket.jpg")


def photographs(count: int) -> list[Image.Image]:
    """Unavailable without scikit-image."""
    try:
        import skimage
    except ImportError:
        raise Unavailable("scikit-image is not installed: pip install vit-fast[bench]") from None
    folder = skimage.data_dir
    found = [Image.open(f"{folder}/{name}").convert("RGB") for name in PHOTOGRAPHS]
    return [found[i % len(found)] for i in range(count)]


def as_jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def decoded(image: bytes | np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8"""
    if isinstance(image, bytes):
        return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    return image


def processor(side: int) -> Any:
    """transformers' own for ViT; which backend it has depends on torchvision, without a word."""
    log = logging.getLogger("transformers")
    level, _ = log.level, log.setLevel(logging.ERROR)
    try:
        return transformers.ViTImageProcessor(size={"height": side, "width": side})
    finally:
        log.setLevel(level)


class Pipeline(nn.Module):
    """A list of images -> logits, as transformers' documentation has it."""

    def __init__(self, hf: PreTrainedModel, side: int) -> None:
        super().__init__()
        self.hf, self.processor = hf, processor(side)

    def forward(self, images: list[bytes | np.ndarray]) -> Tensor:
        arrays = [decoded(image) for image in images]
        pixels = self.processor(arrays, return_tensors="pt")["pixel_values"]
        return self.hf(pixels.to(self.hf.device, self.hf.dtype)).logits


def with_sdpa(module: Pipeline) -> Pipeline:
    twin = copy.deepcopy(module)
    twin.hf.set_attn_implementation("sdpa")
    return twin


def bare(module: Pipeline) -> Program:
    p = module.processor
    vit = ViT.from_hf(
        module.hf, Normalization(p.rescale_factor, tuple(p.image_mean), tuple(p.image_std))
    )

    def call(images: list[bytes | np.ndarray]) -> Tensor:
        arrays = [decoded(image) for image in images]
        found = p(arrays, return_tensors="pt", do_rescale=False, do_normalize=False)
        pixels = found["pixel_values"].to(vit.device)
        return vit.features(pixels, tokens=False, logits=True).logits

    return Program(call)


def task(case: "Case", device: torch.device) -> Task:
    """case.what: "jpeg to logits" or "uint8 to logits", decoded photographs of their own sizes."""
    dtype = DTYPES[case.dtype]
    hf = subjects.make(case.subject, "logits").to(device, dtype)
    module = Pipeline(hf, case.of.model.image)
    images = photographs(case.batch)
    if case.what.startswith("jpeg"):
        inputs: list[Any] = [as_jpeg(image) for image in images]
    else:
        inputs = [np.asarray(image) for image in images]
    ours = {
        "vit-fast": lambda: accelerated(with_sdpa(module)),
        "vit-fast ViT": partial(bare, module),
    }
    return Task(dtype, device, module, (inputs,), partial(with_sdpa, module), ours)
