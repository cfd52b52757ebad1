"""Programmatic dependent launch: a kernel's blocks are sent to the multiprocessors while the kernel before it drains.

CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization". Every kernel calls `wait` before its
first access to memory that another kernel may write. A kernel is then finished only when the one before it is, and so,
one after the other, are all before that: a kernel may read what any earlier one wrote, and write where any earlier one
read.

What need not wait is asking for weights: at batch 1 they come from memory, 172 MB for ViT-B in bf16, and no kernel
writes them. `prefetch` brings a block's first ones to the L2 cache meanwhile. It is a hint that moves cache lines and
nothing else: even a weight that was being written would be read as it is after the wait.
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


@triton.jit
def prefetch(w_ptr, offs_n, N, stride_wn, k_first, k_last):
    """Rows offs_n of w, 16-bit elements, columns k_first .. k_last, to the L2 cache (sm_90; rows 16-byte aligned)."""
    ptrs = w_ptr + tl.minimum(offs_n, N - 1).to(tl.int64) * stride_wn + k_first
    size = tl.zeros_like(offs_n) + (k_last - k_first) // 8 * 16
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [ptrs.to(tl.int64), size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def options(gpu: Gpu) -> dict[str, bool]:
    """Arguments of a launch: whether it may start early (compute capability 9.0 and newer)."""
    return {"PDL": True, "launch_pdl": True} if gpu.pdl and gpu.arch >= 90 else {"PDL": False}
