"""A task: what every program of a case has to compute, as one module of PyTorch, its inputs, and the right answer."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import vit_fast
from vit_fast import ViT
from vit_fast.accuracy import distances
from vit_fast.pixels import Patches

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Unavailable(Exception):
    """Why a program cannot run here, in words for the table."""


@dataclass(frozen=True)
class Program:
    """call(*inputs) -> a tensor of the task's dtype on its device. Where it is timed, it is timed inside held()."""

    call: Callable[..., Tensor]
    held: Callable[[], AbstractContextManager] = contextlib.nullcontext


@dataclass(frozen=True)
class Task:
    """module(*inputs) -> Tensor defines it: transformers' own with eager attention, or plain PyTorch.

    inputs: in the task's dtype on its device. sdpa: the same module with SDPA attention, a copy.
    ours: what is this project's own way to do it, by program. by_image: the inputs are tensors, an image a row.
    """

    dtype: torch.dtype
    device: torch.device
    module: nn.Module
    inputs: tuple[Any, ...]
    sdpa: Callable[[], nn.Module]
    ours: Mapping[str, Callable[[], Program]] = field(default_factory=dict)
    by_image: bool = False

    def in_dtype(self, dtype: torch.dtype, sdpa: bool = True) -> nn.Module:
        """A copy in another dtype, of the weights as they are rounded to this task's."""
        return (self.sdpa() if sdpa else copy.deepcopy(self.module)).to(dtype)

    def inputs_in(self, dtype: torch.dtype) -> tuple[Any, ...]:
        return tuple(
            x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
            for x in self.inputs
        )

    def reference(self, images: int = 8) -> Tensor:
        """In float64, so many images at a time. SDPA: transformers' eager softmax is fp32 whatever the dtype."""
        module, inputs = self.in_dtype(torch.float64), self.inputs_in(torch.float64)
        if not self.by_image:
            return module(*inputs)
        parts = zip(*(x.split(images) for x in inputs), strict=True)
        return torch.cat([module(*part) for part in parts])


@contextlib.contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Models are made and loaded outside inference mode, and called in it, here too.

    A tensor made in inference mode has no version: there checks of whether a weight has changed cost less.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def accelerated(twin: nn.Module) -> Program:
    """The drop-in of twin.hf, on its fast path; RuntimeError, at the first call, says why it is not."""
    vit_fast.accelerate(twin.hf)
    checked: list[bool] = []

    def call(*inputs: Any) -> Tensor:
        y = twin(*inputs)
        # once is enough: what decides is the same at every call
        if not checked:
            for encoder in vit_fast.explain(twin.hf):
                if not encoder.fast:
                    raise RuntimeError(f"not on the fast path: {encoder.reason}")
            checked.append(True)
        return y

    return Program(call)


def output_of(vit: ViT, output: str, pixels: Tensor | Patches) -> Tensor:
    """The same by a ViT of ours as the field subjects.FIELDS[output] of transformers' answer."""
    if output == "tokens":
        return vit(pixels)
    # a CLIP's image embeddings are its logits
    field = "pooled" if output == "pooled" else "logits"
    return getattr(vit.features(pixels, tokens=False, **{field: True}), field)


def judge(y: Tensor, ref: Tensor, baseline: Tensor) -> tuple[dict[str, float] | None, str]:
    """(errors and what is allowed, what breaks the rule or "") of a result."""
    try:
        largest, row = both = distances(y, ref, baseline)
    except AssertionError as error:
        return None, str(error) or "shape, dtype or finiteness differ"
    beyond = [d for d in both if not d.error <= d.allowed]
    broken = [f"{d.measure} {d.error:.3g}, allowed {d.allowed:.3g}" for d in beyond]
    accuracy = {
        "error": largest.error,
        "allowed": largest.allowed,
        "row_error": row.error,
        "row_allowed": row.allowed,
    }
    return accuracy, "; ".join(broken)
