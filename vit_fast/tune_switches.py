"""The yes-or-no questions that `vit-fast tune` asks a GPU: a forward pass without and with.

Both are of what surrounds kernels, gaps between launches and passes over memory, so they are measured on whole
blocks: two of ViT-B in bf16, of one image, where they matter most.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch

from vit_fast.kernels import (
    attention,
    folding,
    layer_norm,
    linear,
    linear_folded,
    linear_gated,
    linear_norm,
    patch_embed,
)
from vit_fast.kernels.tuning import Gpu
from vit_fast.model import ViT
from vit_fast.ops import Folding, Ops
from vit_fast.spec import ViTSpec

Program = Callable[[int], object]
_SPEC = ViTSpec("vit", (224, 224), 16, 3, 768, 2, 12, 64, 3072, 1e-12)


def launchers(gpu: Gpu, folded: bool = False) -> Ops:
    """triton_ops(folded), its launches as they are on `gpu`."""

    def of(launch: Callable) -> Callable:
        return functools.partial(launch, gpu=gpu)

    plain = [of(module.launch) for module in (patch_embed, layer_norm, linear, attention)]
    norms = Folding(
        of(folding.launch), of(linear_folded.launch_statistics), of(linear_folded.launch_folded)
    )
    return Ops(
        "launchers", *plain, False, of(linear_norm.launch), None, norms if folded else None,
        gated=of(linear_gated.launch),
    )  # fmt: skip


def _programs(device: torch.device, *tables: Ops) -> tuple[Program, ...]:
    with torch.device(device):
        vit = ViT(_SPEC).to(torch.bfloat16).eval()
        pixels = torch.randn(1, 3, 224, 224, dtype=torch.bfloat16)

    def program(ops: Ops) -> Program:
        def run(i: int) -> object:
            with torch.inference_mode():
                return vit.encode(pixels, ops)

        return run

    return tuple(map(program, tables))


def pdl(device: torch.device, gpu: Gpu) -> tuple[Program, ...]:
    """Launches that begin before the kernel in front has ended (compute capability 9.0 and newer)."""
    gpu = replace(gpu, pdl=False)
    return _programs(device, launchers(gpu), launchers(replace(gpu, pdl=gpu.arch >= 90)))


def fold(device: torch.device, gpu: Gpu) -> tuple[Program, ...]:
    """LayerNorm folded into the product behind it."""
    return _programs(device, launchers(gpu), launchers(gpu, folded=True))


# in this order: what is measured after pdl is launched as pdl says
SWITCHES = {"pdl": pdl, "fold": fold}
