"""End to end: photographs as JPEG files or as decoded bytes -> logits or embeddings, through transformers' processor.

A ViT of ours takes the bytes that the processor leaves before it rescales and normalizes: both are inside its first
kernel. The photographs are scikit-image's.
"""

import copy
import io
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from vit_fast import Normalization, ViT

from . import subjects
from .task import DTYPES, Program, Task, Unavailable, accelerated, output_of

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


def resized(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}}


def cropped(side: int, edge: float = 1.0) -> dict[str, Any]:
    """The middle of an image whose shortest edge is `edge` sides."""
    crop = {"height": side, "width": side}
    return {"size": {"shortest_edge": round(side * edge)}, "crop_size": crop}


def cropped_of_imagenet(side: int) -> dict[str, Any]:
    means = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    return cropped(side, 256 / 224) | means


# type of an encoder -> transformers' image processor, and what it is given for images of so many pixels a side: as in
# google/vit-base-patch16-224, google/siglip-base-patch16-224, openai/clip-vit-base-patch16 and facebook/dinov2-base
PROCESSORS: Mapping[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "vit": ("ViTImageProcessor", resized),
    "siglip_vision_model": ("SiglipImageProcessor", resized),
    "clip_vision_model": ("CLIPImageProcessor", cropped),
    "dinov2": ("BitImageProcessor", cropped_of_imagenet),
}


def processor(hf: PreTrainedModel, side: int) -> Any:
    """transformers' own of a family; which backend it has depends on torchvision, without a word.

    ValueError for a family that has none here.
    """
    family = hf.config.model_type
    if family not in PROCESSORS:
        raise ValueError(
            f"no image processor for {family}, expected one of {', '.join(PROCESSORS)}"
        )
    cls, given = PROCESSORS[family]
    log = logging.getLogger("transformers")
    level, _ = log.level, log.setLevel(logging.ERROR)
    try:
        return getattr(transformers, cls)(**given(side))
    finally:
        log.setLevel(level)


class Pipeline(nn.Module):
    """A list of images -> a field of transformers' answer, as its documentation has it."""

    def __init__(self, hf: PreTrainedModel, side: int, field: str) -> None:
        super().__init__()
        self.hf, self.processor, self.field = hf, processor(hf, side), field

    def forward(self, images: list[bytes | np.ndarray]) -> Tensor:
        arrays = [decoded(image) for image in images]
        pixels = self.processor(arrays, return_tensors="pt")["pixel_values"]
        return getattr(self.hf(pixels.to(self.hf.device, self.hf.dtype)), self.field)


def with_sdpa(module: Pipeline) -> Pipeline:
    twin = copy.deepcopy(module)
    twin.hf.set_attn_implementation("sdpa")
    return twin


def bare(module: Pipeline, output: str) -> Program:
    p = module.processor
    vit = ViT.from_hf(
        module.hf, Normalization(p.rescale_factor, tuple(p.image_mean), tuple(p.image_std))
    )

    def call(images: list[bytes | np.ndarray]) -> Tensor:
        arrays = [decoded(image) for image in images]
        found = p(arrays, return_tensors="pt", do_rescale=False, do_normalize=False)
        return output_of(vit, output, found["pixel_values"].to(vit.device))

    return Program(call)


def task(case: "Case", device: torch.device) -> Task:
    """case.what: "jpeg to ..." or "uint8 to ...", decoded photographs of their own sizes; then one of subjects.FIELDS.

    ValueError for another.
    """
    given, _, output = case.what.partition(" to ")
    if given not in ("jpeg", "uint8") or output not in subjects.FIELDS:
        outputs = ", ".join(subjects.FIELDS)
        raise ValueError(f"end to end is 'jpeg' or 'uint8' to {outputs}; got {case.what!r}")
    dtype = DTYPES[case.dtype]
    hf = subjects.make(case.subject, output).to(device, dtype)
    module = Pipeline(hf, case.of.model.image, subjects.FIELDS[output])
    images = photographs(case.batch)
    read = as_jpeg if given == "jpeg" else np.asarray
    inputs: list[Any] = [read(image) for image in images]
    ours = {
        "vit-fast": lambda: accelerated(with_sdpa(module)),
        "vit-fast ViT": partial(bare, module, output),
    }
    return Task(dtype, device, module, (inputs,), partial(with_sdpa, module), ours)
