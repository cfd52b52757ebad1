"""A large batch on a CPU goes through the encoder part by part, in memory that the process keeps.

glibc's malloc maps a block of more than 32 MiB anew at each call, and gives the top of its heap back beyond twice the
largest block that was ever mapped and freed. The kernel then clears every page again when it is touched: 440,000
pages, an eighth of the time, in a forward pass of 32 images of a ViT-B in fp32 (benchmarks/LOG.md). So no tensor
between two layers is larger than that, and the heap is led to keep nearly twice as much.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vit_fast.ops import Ops
from vit_fast.pixels import Patches
from vit_fast.runtime import mode_forbids
from vit_fast.spec import ViTSpec
from vit_fast.watch import global_hooks_are_set

if TYPE_CHECKING:
    from vit_fast.model import ViT

# glibc's DEFAULT_MMAP_THRESHOLD_MAX on 64 bits (mallopt(3)), less malloc's own bookkeeping
BLOCK = (32 << 20) - 8192

Answer = tuple[Tensor, dict[int | str, Tensor]]


@functools.cache
def keep_heap() -> None:
    """Maps a block and frees it, untouched: from there on glibc keeps twice as much. Other allocators do as they do."""
    # a process that is bound to less address space goes on without; on the CPU whatever the default device
    with contextlib.suppress(RuntimeError):
        torch.empty(BLOCK, dtype=torch.uint8, device="cpu")


def counts(batch: int, rows: int, spec: ViTSpec, itemsize: int) -> list[int]:
    """Images of each part, as equal as can be: the widest tensor of a part fits into BLOCK, or it is one image.

    rows: tokens of an image.
    """
    # behind fc1, behind qkv, between blocks, and the patches before the first one
    width = max(spec.mlp_dim, 3 * spec.inner_dim, spec.dim, spec.channels * spec.patch**2)
    most = max(BLOCK // (rows * width * itemsize or 1), 1)
    parts = max(math.ceil(batch / most), 1)
    return [batch // parts + (i < batch % parts) for i in range(parts)]


def stay_apart(images: Tensor, ops: Ops) -> bool:
    """Whether images may be split: not in what records, transforms or counts a forward pass."""
    # a tensor of another class may be one shard of a batch, or count what is done with it
    if images.device.type != "cpu" or type(images) is not Tensor or torch.jit.is_tracing():
        return False
    return not ops.differentiable or not (torch.is_grad_enabled() or mode_forbids())


def encode_in_parts(
    vit: "ViT",
    pixels: Tensor | Patches,
    ops: Ops,
    rows: int | None,
    keep: Collection[int | str],
) -> Answer:
    """vit.encode(pixels, ops, rows, keep), the whole batch at once where that is no matter, or not to be split."""
    several = type(pixels) is Patches
    images = pixels.pixels if several else pixels
    if not stay_apart(images, ops):
        return vit.encode(pixels, ops, rows, keep)
    keep_heap()
    tokens = images.shape[1] if several else vit.spec.tokens(tuple(images.shape[-2:]))
    parts = counts(len(images), tokens, vit.spec, vit.dtype.itemsize)
    # a hook inside, or a derived class's own encode, would be called for each part
    if len(parts) == 1 or not vit.is_plain() or global_hooks_are_set():
        return vit.encode(pixels, ops, rows, keep)
    room: Answer | None = None
    for part, place in zip(split(pixels, parts), places(parts), strict=True):
        y, kept = vit.encode(part, ops, rows, keep)
        if room is None:
            room = whole(y, len(images)), {key: whole(t, len(images)) for key, t in kept.items()}
        room[0][place] = y
        for key, t in kept.items():
            room[1][key][place] = t
    return room


def whole(part: Tensor, batch: int) -> Tensor:
    return part.new_empty(batch, *part.shape[1:])


def places(parts: list[int]) -> Iterator[slice]:
    ends = list(itertools.accumulate(parts))
    return map(slice, [0, *ends[:-1]], ends)


def split(pixels: Tensor | Patches, parts: list[int]) -> Iterator[Tensor | Patches]:
    if type(pixels) is not Patches:
        yield from pixels.split(parts)
        return
    masks = [None] * len(parts) if pixels.mask is None else pixels.mask.split(parts)
    for fields in zip(
        pixels.pixels.split(parts), pixels.positions.split(parts), masks, strict=True
    ):
        yield Patches(*fields)
