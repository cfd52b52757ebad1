"""LayerNorm: y = (x - mean) * rstd * w + b over the last axis, statistics in fp32.

One program owns whole rows: x is read once and y written once, 2 * M * N * itemsize bytes in all,
so the roof is memory bandwidth. The variance is taken around the mean in a second pass over
registers: one pass, E[x^2] - mean^2, loses every digit when |mean| is large beside the spread. So
does a mean that is off by its own rounding, where eps is 1e-12 and a row is constant: 1e-7 of the
value, times 1/sqrt(eps), is a tenth of it. The mean of what is left after the first mean corrects
it.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import options as dependent
from .dependent import wait
from .launch import COMPILE_OPTIONS, operator
from .operators import check_tensor, refuse, rows
from .tuning import Gpu, cdiv, gpu_of

MAX_WIDTH = 16384


def layer_norm_ref(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    """The definition; tests evaluate it in float64."""
    xc = x - x.mean(-1, keepdim=True)
    return xc * torch.rsqrt(xc.square().mean(-1, keepdim=True) + eps) * w + b


@lru_cache
def launch_config(N: int) -> dict[str, int]:
    """Rows a program and warps for rows of N: 32 values a lane, and rows enough for four 16-byte
    loads in flight.
    """
    block_n = triton.next_power_of_2(N)
    return {
        "BLOCK_M": max(1, 1024 // block_n),
        "BLOCK_N": block_n,
        "num_warps": min(16, max(1, block_n // 1024)),
    }


@triton.jit
def normalized(x, offs_n, N, w_ptr, b_ptr, eps):
    """LayerNorm of whole rows x [rows, BLOCK_N] in fp32, of which N values count."""
    inside = offs_n < N
    mean = tl.sum(tl.where(inside[None, :], x, 0.0), axis=1) / N
    # padded lanes now hold -mean: mask again before summing and squaring
    xc = tl.where(inside[None, :], x - mean[:, None], 0.0)
    xc = tl.where(inside[None, :], xc - (tl.sum(xc, axis=1) / N)[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(xc * xc, axis=1) / N + eps)
    w = tl.load(w_ptr + offs_n, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + offs_n, mask=inside, other=0.0).to(tl.float32)
    return xc * rstd[:, None] * w[None, :] + b[None, :]


@triton.jit
def _layer_norm_kernel(
    x_ptr,  # [M, N], rows stride_xm apart, last axis contiguous
    w_ptr,  # [N]
    b_ptr,  # [N]
    y_ptr,  # [M, N], contiguous
    M, N: tl.constexpr, stride_xm, eps,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait(PDL)
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    x = tl.load(x_ptr + offs_m[:, None] * stride_xm + offs_n[None, :], mask=mask, other=0.0)
    y = normalized(x.to(tl.float32), offs_n, N, w_ptr, b_ptr, eps)
    tl.store(y_ptr + offs_m[:, None] * N + offs_n[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


def launch(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gpu: Gpu | None = None) -> Tensor:
    """x [..., N], weight [N], bias [N] -> [..., N] in x.dtype. ValueError names the shapes that do
    not fit.
    """
    N = x.shape[-1] if x.dim() else 0
    if not 0 < N <= MAX_WIDTH:
        refuse("layer_norm", f"x is {tuple(x.shape)}, expected [..., N] with N up to {MAX_WIDTH}")
    check_tensor("layer_norm", "x", x, x.shape, x.device)
    check_tensor("layer_norm", "weight", weight, (N,), x.device)
    check_tensor("layer_norm", "bias", bias, (N,), x.device)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x2 = rows(x)
    M = x2.shape[0]
    if M:
        config = launch_config(N)
        grid = (cdiv(M, config["BLOCK_M"]),)
        _layer_norm_kernel[grid](
            x2, weight.contiguous(), bias.contiguous(), y, M, N, x2.stride(0), eps,
            **config, **dependent(gpu or gpu_of(x.device)), **COMPILE_OPTIONS,
        )  # fmt: skip
    return y


def _fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


layer_norm = operator(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor", launch, _fake
)
