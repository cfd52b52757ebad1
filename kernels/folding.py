"""Row statistics, and LayerNorm folded into the matrix product behind it.

LayerNorm(x) W^T + b is

    rstd (x W'^T - mean s) + b',    W' = W diag(gamma),  s = row sums of W',  b' = b + W beta

so x itself is multiplied, and its mean and rstd enter in the epilogue: the pass over memory that writes LayerNorm(x)
is gone. s has to be summed over W' as it was rounded: then what x's mean adds to x W'^T is what mean s takes away,
whatever the rounding. What remains is the rounding of x W'^T in fp32, magnified where a row's mean is many times its
spread. In half precision that is far below the rounding of LayerNorm(x) itself; in fp32 it is not (at a mean of 31
spreads 3 times PyTorch's error), and LayerNorm stays. Rows that are constant but for rounding are not for this at all,
nor is fp16 where a whole gamma is so small (1e-4) that W' is under fp16's smallest normal number, 6e-5.

mean and rstd come from whoever wrote x: the launch that adds the residual leaves the
mean of each 64 values and the sum of squares around it, and the reader puts the parts together as in Chan, Golub
and LeVeque 1979, eq. 2.1: no difference of large sums. 8 bytes a row and part are written and read where LayerNorm
reads and writes the row. For the first x of a model, row_statistics makes them in a launch of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import options as dependent
from .dependent import wait
from .launch import COMPILE_OPTIONS, operator
from .layer_norm import MAX_WIDTH
from .layer_norm import launch_config as rows_config
from .operators import check_tensor, refuse, rows
from .tuning import Gpu, cdiv, gpu_of

PART = 64  # values of a row whose statistics stand together; every tile is as wide or wider


def row_statistics_ref(x: Tensor) -> Tensor:
    """The definition; tests evaluate it in float64. x [M, N] -> [M, parts, 2]."""
    parts = [(p, p.mean(-1, keepdim=True)) for p in x.split(PART, -1)]
    return torch.stack([torch.stack((m[:, 0], (p - m).square().sum(-1)), -1) for p, m in parts], 1)


@triton.jit
def store_parts(stats_ptr, y, offs_m, col, M, N, PART: tl.constexpr):
    """Statistics of y [rows, columns], the columns from `col` on of which those under N count, as parts of its rows."""
    HERE: tl.constexpr = y.shape[1] // PART
    part = col // PART + tl.arange(0, HERE)
    count = tl.minimum(tl.maximum(N - part * PART, 0), PART)
    inside = tl.arange(0, PART)[None, None, :] < count[None, :, None]
    y = tl.where(inside, tl.reshape(y, (y.shape[0], HERE, PART)).to(tl.float32), 0.0)
    mean = tl.sum(y, 2) / tl.maximum(count, 1)[None, :].to(tl.float32)  # [rows, HERE]
    yc = tl.where(inside, y - mean[:, :, None], 0.0)
    ptrs = stats_ptr + (offs_m.to(tl.int64)[:, None] * tl.cdiv(N, PART) + part[None, :]) * 2
    mask = (offs_m < M)[:, None] & (count > 0)[None, :]
    tl.store(ptrs, mean, mask=mask)
    tl.store(ptrs + 1, tl.sum(yc * yc, 2), mask=mask)


@triton.jit
def combined(stats_ptr, offs_m, M, N, eps, PARTS: tl.constexpr, PART: tl.constexpr):
    """mean and 1 / sqrt(variance + eps), each [rows], from the rows' PARTS parts."""
    # a few at a time: an accumulator lies in registers beside them
    WIDTH: tl.constexpr = min(16, triton.next_power_of_2(PARTS))
    rows = offs_m.to(tl.int64)
    mean = tl.zeros((offs_m.shape[0],), tl.float32)
    squares = tl.zeros((offs_m.shape[0],), tl.float32)
    for first in tl.range(0, PARTS, WIDTH, num_stages=1):
        parts = first + tl.arange(0, WIDTH)
        mask = (offs_m < M)[:, None] & (parts < PARTS)[None, :]
        ptrs = stats_ptr + (rows[:, None] * PARTS + parts[None, :]) * 2
        m = tl.load(ptrs, mask=mask, other=0.0)  # [rows, WIDTH]
        s = tl.load(ptrs + 1, mask=mask, other=0.0)
        counts = tl.minimum(tl.maximum(N - parts * PART, 0), PART).to(tl.float32)
        here = tl.sum(counts, 0)
        before = tl.minimum(first * PART, N).to(tl.float32)
        m_here = tl.sum(m * counts[None, :], 1) / here
        apart = m - m_here[:, None]
        squares += tl.sum(s + counts[None, :] * apart * apart, 1)
        step = m_here - mean
        mean += step * (here / (before + here))
        squares += step * step * (before * here / (before + here))
    return mean, tl.rsqrt(squares / N + eps)


@triton.jit
def _row_statistics_kernel(
    x_ptr,  # [M, N], rows stride_xm apart, last axis contiguous
    stats_ptr,  # [M, N / PART, 2]
    M, N, stride_xm,
    PART: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait(PDL)
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    x = tl.load(x_ptr + offs_m[:, None] * stride_xm + offs_n[None, :], mask=mask, other=0.0)
    store_parts(stats_ptr, x, offs_m, 0, M, N, PART)


def launch(x: Tensor, gpu: Gpu | None = None) -> Tensor:
    """x [..., N] -> [rows, N / PART, 2] in fp32: of each part of a row, its mean and the sum of squares around it."""
    N = x.shape[-1] if x.dim() else 0
    if not 0 < N <= MAX_WIDTH:
        shape = tuple(x.shape)
        refuse("row_statistics", f"x is {shape}, expected [..., N] with N up to {MAX_WIDTH}")
    check_tensor("row_statistics", "x", x, x.shape, x.device)
    stats = _fake(x)
    if stats.numel():
        x2, c = rows(x), rows_config(N)
        _row_statistics_kernel[(cdiv(len(x2), c["BLOCK_M"]),)](
            x2, stats, len(x2), N, x2.stride(0), PART=PART, BLOCK_M=c["BLOCK_M"], BLOCK_N=max(PART, c["BLOCK_N"]),
            num_warps=c["num_warps"], **dependent(gpu or gpu_of(x.device)), **COMPILE_OPTIONS,
        )  # fmt: skip
    return stats


def _fake(x: Tensor) -> Tensor:
    shape = x.numel() // x.shape[-1], cdiv(x.shape[-1], PART), 2
    return x.new_empty(shape, dtype=torch.float32)


row_statistics = operator("row_statistics(Tensor x) -> Tensor", launch, _fake)
