"""What every launcher shares: its registration as a custom operator, and the checks of its
arguments.

A launcher is a plain function on tensors. `operator` registers it as `torch.ops.vit_fast.<name>`
for CUDA, and for the CPU because Triton's interpreter runs there; a fake gives shapes to
torch.compile and torch.export; a backward that raises keeps a gradient from being silently missing.
"""

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad
from triton import knobs

INTERPRETED = knobs.runtime.interpret
# a * b + c as one FMA, the default until Triton 3.9 and not after
COMPILE_OPTIONS = {"enable_fp_fusion": True}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_LIBRARY = torch.library.Library("vit_fast", "DEF")


def operator(schema: str, launcher: Callable, fake: Callable) -> Callable:
    """Registers `launcher` under `schema`; returns the operator. The first argument names the
    device.
    """
    name = schema.partition("(")[0]

    def refuse_forward_mode() -> None:
        if forward_ad._current_level >= 0:
            raise RuntimeError(
                f"vit_fast.{name} has no forward-mode derivative: use vit_fast.ops.torch_ops()"
            )

    def on_cuda(x: Tensor, *args):
        refuse_forward_mode()
        # Triton launches on the current device, which need not be x's
        with torch.cuda.device_of(x):
            return launcher(x, *args)

    def on_cpu(x: Tensor, *args):
        refuse_forward_mode()
        if not INTERPRETED:
            raise RuntimeError(
                f"vit_fast.{name} got a tensor on the CPU, and Triton kernels need a GPU: "
                "use vit_fast.ops.torch_ops(), or set TRITON_INTERPRET=1 before Python starts to run them interpreted"
            )
        return launcher(x, *args)

    def backward(ctx, *grads):
        raise RuntimeError(
            f"vit_fast.{name} has no gradient: call the model under torch.inference_mode(), "
            "or train through vit_fast.ops.torch_ops()"
        )

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, on_cuda, "CUDA")
    _LIBRARY.impl(name, on_cpu, "CPU")
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
