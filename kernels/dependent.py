"""Programmatic dependent launch: a kernel's blocks are sent to the multiprocessors while the kernel before it drains.

CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization". Every kernel calls `wait` before its
first access to memory. A kernel is then finished only when the one before it is, and so, one after the other, are all
before that: a kernel may read what any earlier one wrote, and write where any earlier one read.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .tuning import Gpu


@triton.jit
def wait(PDL: tl.constexpr):
    """Lets the next kernel start, and waits until the last one has written everything."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


def options(gpu: Gpu) -> dict[str, bool]:
    """Arguments of a launch: whether it may start early (compute capability 9.0 and newer)."""
    return {"PDL": True, "launch_pdl": True} if gpu.pdl and gpu.arch >= 90 else {"PDL": False}
