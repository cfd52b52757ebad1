"""What a CUDA graph reads anew at each replay: images, or the tensors of Patches, in static tensors of a bucket's size.

A replay copies the call's tensors into the static ones. What is in the rows behind them reaches no row of the result.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vit_fast.pixels import Patches

Kind = tuple[Sequence[int], torch.dtype]  # shape and dtype of a tensor


class Key(NamedTuple):
    """What a graph is for. settings: what else the launches depend on, see CudaRecorder.settings."""

    batch: int
    inputs: tuple[Kind, ...]  # of one image; with as many tensors as split() gives
    rows: int | None
    keep: tuple[int | str, ...]
    settings: Hashable

    @property
    def dtype(self) -> torch.dtype:
        """Of the pixels."""
        return self.inputs[0][1]

    def static(self) -> list[Kind]:
        """Of the tensors that the graph reads."""
        return [((self.batch, *shape), dtype) for shape, dtype in self.inputs]

    def __str__(self) -> str:
        shape = self.inputs[0][0]
        if len(self.inputs) == 1:
            return f"batch {self.batch} of {shape[1]} x {shape[2]}, {self.dtype}"
        masked = ", masked" if len(self.inputs) == 3 else ""
        return f"batch {self.batch} of {shape[0]} patches{masked}, {self.dtype}"


def split(pixels: Tensor | Patches) -> tuple[Tensor, ...]:
    """Tensors with a row for each image: the images; or pixels and positions of Patches, and their mask if they have
    one."""
    if type(pixels) is not Patches:
        return (pixels,)
    return pixels[:2] if pixels.mask is None else tuple(pixels)


def joined(tensors: Sequence[Tensor]) -> Tensor | Patches:
    """What `tensors` were split from."""
    return tensors[0] if len(tensors) == 1 else Patches(*tensors)


def kinds(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Kind, ...]:
    """As in Key, for pixels in `dtype`."""
    pixels, *others = tensors
    return (pixels.shape[1:], dtype), *((t.shape[1:], t.dtype) for t in others)


def put(tensors: Sequence[Tensor], static: Sequence[Tensor]) -> None:
    """`tensors` into the first rows of `static`.

    Behind images is what was there, an earlier call's or whatever has lain in that memory. Behind Patches are zeros all
    of which count: an image without a key that counts has no result.
    """
    batch = len(tensors[0])
    for t, whole in zip(tensors, static):
        if batch == len(whole):
            whole.copy_(t)
        else:
            whole[:batch].copy_(t)
            if len(static) > 1:
                whole[batch:].fill_(whole.dtype == torch.bool)
