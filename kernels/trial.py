"""Whether Triton can compile for a GPU, load onto it and launch there, found out before a model runs.

Triton looks for what it needs at a first launch, and fails there: a C compiler and Python's headers
for its launcher, libcuda.so.1, a code generator and a ptxas that know the GPU, a driver that loads
what ptxas made ("device kernel image is invalid" where the driver is older than Triton's CUDA), a
folder for its cache. One small product by the matrix unit takes the same way. It is compiled once
in the life of Triton's cache (half a second), and nothing waits for its result.
"""

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

SIZE = 16
# all that Triton's compiler, its builder and its driver raise where a machine is at fault
FAULTS = (
    triton.TritonError,
    AssertionError,  # libcuda.so.1 is not found
    ImportError,  # the launcher that was built does not load
    OSError,  # no cache folder, no executable
    RuntimeError,  # no C compiler, an error of CUDA's, a compiler pass that failed
    subprocess.CalledProcessError,
    ValueError,
)


@triton.jit
def trial_kernel(
    x_ptr,  # [SIZE, SIZE] fp16, contiguous
    y_ptr,  # the same
    SIZE: tl.constexpr,
):
    offs = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    x = tl.load(x_ptr + offs)
    tl.store(y_ptr + offs, tl.dot(x, x).to(tl.float16))


def _launch(x: Tensor, y: Tensor) -> None:
    trial_kernel[(1,)](x, y, SIZE=SIZE)


def why_not(device: torch.device, launch: Callable[[Tensor, Tensor], None] = _launch) -> str:
    """Why Triton's kernels cannot run on this CUDA device, with Triton's own words, or "".

    A full GPU, and one that an earlier error has left unusable, are not for this answer: RuntimeError.
    """
    if knobs.runtime.interpret:
        return ""
    # in a thread of its own no mode of the caller's is on: fake tensors, counters, inference mode
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_try, device, launch).result()


def _try(device: torch.device, launch: Callable[[Tensor, Tensor], None]) -> str:
    x = torch.empty(SIZE, SIZE, dtype=torch.float16, device=device)
    try:
        with torch.cuda.device_of(x):
            launch(x, torch.empty_like(x))
    except FAULTS as error:
        words = " ".join(str(error).split())
        if "out of memory" in words:
            raise
        words = f"{words[:300]} ..." if len(words) > 300 else words
        return (
            f"Triton {triton.__version__} cannot compile for it or launch on it ({type(error).__name__}: {words}): "
            "it needs a C compiler, Python's headers, a writable ~/.triton, and a GPU and a driver that it knows"
        )
    return ""
