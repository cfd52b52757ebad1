"""What every launcher shares: its registration as an operator for CUDA, and for the CPU because Triton's interpreter
runs there.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from triton import knobs

from .operators import define

INTERPRETED = knobs.runtime.interpret
# a * b + c as one FMA, the default until Triton 3.9 and not after
COMPILE_OPTIONS = {"enable_fp_fusion": True}


def operator(schema: str, launcher: Callable, fake: Callable) -> Callable:
    """Registers `launcher` under `schema`; returns the operator. The first argument names the
    device.
    """
    name = schema.partition("(")[0]

    def on_cuda(x: Tensor, *args):
        # Triton launches on the current device, which need not be x's
        with torch.cuda.device_of(x):
            return launcher(x, *args)

    def on_cpu(x: Tensor, *args):
        if not INTERPRETED:
            raise RuntimeError(
                f"vit_fast.{name} got a tensor on the CPU, and Triton kernels need a GPU: "
                "use vit_fast.ops.torch_ops(), or set TRITON_INTERPRET=1 before Python starts to run them interpreted"
            )
        return launcher(x, *args)

    return define(schema, {"CUDA": on_cuda, "CPU": on_cpu}, fake)
