"""What every custom operator of vit-fast shares: its registration and the checks of its arguments. No triton here.

An operator is registered as `torch.ops.vit_fast.<name>`. A fake gives shapes to torch.compile and torch.export; a
backward that raises keeps a gradient from being silently missing.
"""

from collections.abc import Callable, Mapping
from typing import NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_LIBRARY = torch.library.Library("vit_fast", "DEF")


def define(schema: str, implementations: Mapping[str, Callable], fake: Callable) -> Callable:
    """Registers `schema` with an implementation per dispatch key; returns the operator."""
    name = schema.partition("(")[0]

    def without_forward_mode(implementation: Callable) -> Callable:
        def run(*args):
            if forward_ad._current_level >= 0:
                raise RuntimeError(
                    f"vit_fast.{name} has no forward-mode derivative: use vit_fast.ops.torch_ops()"
                )
            return implementation(*args)

        return run

    def backward(ctx, *grads):
        raise RuntimeError(
            f"vit_fast.{name} has no gradient: call the model under torch.inference_mode(), "
            "or train through vit_fast.ops.torch_ops()"
        )

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key, implementation in implementations.items():
        _LIBRARY.impl(name, without_forward_mode(implementation), key)
    torch.library.register_fake(f"vit_fast::{name}", fake, lib=_LIBRARY)
    torch.library.register_autograd(f"vit_fast::{name}", backward, lib=_LIBRARY)
    return getattr(torch.ops.vit_fast, name).default


def rows(x: Tensor) -> Tensor:
    """x [..., K] -> [M, K] with a unit last stride: a view where the layout allows it, else a copy."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def refuse(op: str, message: str) -> NoReturn:
    raise ValueError(f"vit_fast.{op}: {message}")


def check_tensor(
    op: str,
    name: str,
    t: Tensor | None,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> None:
    """None passes; a tensor has this shape, device and dtype (None: a supported float dtype)."""
    if t is None:
        return
    if t.shape != shape:
        refuse(op, f"{name} is {tuple(t.shape)}, expected {tuple(shape)}")
    if t.device != device:
        refuse(op, f"{name} is on {t.device}, the first argument on {device}")
    if t.dtype != dtype and (dtype is not None or t.dtype not in DTYPES):
        expected = DTYPES if dtype is None else (dtype,)
        refuse(op, f"{name} is {t.dtype}, expected {' or '.join(map(str, expected))}")
