"""y = residual + scale * (x W^T + b) and LayerNorm(y), in two launches: what ends the halves of a block.

Either the product with its epilogue, then LayerNorm; or, where the product alone would leave multiprocessors idle (a
768-wide result of one image is 48 tiles of 64 x 64), the product split along K into partial sums in fp32, and one
launch that adds them up in a fixed order, applies the epilogue and normalizes the rows it holds anyway. The second way
moves 8 S M N bytes more for S splits, through the L2 cache; the model of clocks in linear_tiles.py weighs them, and a
measured table goes before it. Nothing is accumulated by atomics: results do not depend on which block is first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import layer_norm, linear_tiles
from .activations import identity
from .dependent import options as dependent
from .dependent import wait
from .folding import PART
from .launch import COMPILE_OPTIONS, operator
from .layer_norm import layer_norm_ref, normalized
from .linear import check, describable, launch_tiles, linear_ref, run
from .linear_tiles import Config
from .operators import check_tensor, refuse, rows
from .tuning import Gpu, cached, cdiv, dtype_name, gpu_of, tuned


def linear_norm_ref(x, w, b, scale, residual, norm_w, norm_b, eps) -> tuple[Tensor, Tensor]:
    """The definition; tests evaluate it in float64."""
    y = linear_ref(x, w, b, None, scale, residual)
    return y, layer_norm_ref(y, norm_w, norm_b, eps)


@cached
def config_for(
    M: int, N: int, K: int, dtype: torch.dtype, descriptors: bool, aligned: bool, gpu: Gpu
) -> Config:
    """The measured configuration of this shape on this GPU, else the fewest clocks."""
    measured = tuned(gpu, "linear_norm", M=M, N=N, K=K, dtype=dtype_name(dtype))
    # it was measured on tensors that the best kernel for this dtype takes
    if (
        measured is not None
        and aligned
        and descriptors == (gpu.bulk_copies and dtype.itemsize == 2)
    ):
        return Config(**measured)
    return launch_config(M, N, K, dtype.itemsize, descriptors, gpu, aligned)


def launch_config(
    M: int, N: int, K: int, itemsize: int, descriptors: bool, gpu: Gpu, aligned: bool = True
) -> Config:
    """The tile and the split of the fewest clocks. Pure."""
    choice = linear_tiles.split_candidates(K, itemsize, descriptors)
    choice = [c for c in choice if aligned or c.block_m * c.block_n <= 64 * 128]
    return min(choice, key=lambda c: linear_tiles.clocks(c, M, N, K, itemsize, gpu))


def misfit(c: Config, **_: int | str) -> str:
    """Any configuration does: ""."""
    return ""


@triton.jit
def _sum_norm_kernel(
    partial_ptr,  # [SPLITS, M, N] fp32
    bias_ptr,  # [N] or None
    scale_ptr,  # [N] or None
    residual_ptr,  # [M, N], rows stride_rm apart, or None
    norm_w_ptr, norm_b_ptr,  # [N]
    y_ptr, normed_ptr,  # [M, N], contiguous
    M, N: tl.constexpr, stride_rm, eps,
    SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait(PDL)
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    inside = offs_n < N
    mask = (offs_m < M)[:, None] & inside[None, :]
    at = offs_m[:, None] * N + offs_n[None, :]
    share = at  # int64
    y = tl.load(partial_ptr + share, mask=mask, other=0.0)
    for _ in tl.static_range(1, SPLITS):
        share += tl.full((), N, tl.int64) * M
        y += tl.load(partial_ptr + share, mask=mask, other=0.0)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + offs_n, mask=inside, other=0.0).to(tl.float32)[None, :]
    if scale_ptr is not None:
        y *= tl.load(scale_ptr + offs_n, mask=inside, other=0.0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        r_ptrs = residual_ptr + offs_m[:, None] * stride_rm + offs_n[None, :]
        y += tl.load(r_ptrs, mask=mask, other=0.0).to(tl.float32)
    y = y.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + at, y, mask=mask)
    # of y as it is stored: what a launch of its own would read
    h = normalized(y.to(tl.float32), offs_n, N, norm_w_ptr, norm_b_ptr, eps)
    tl.store(normed_ptr + at, h.to(normed_ptr.dtype.element_ty), mask=mask)


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    gpu: Gpu | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """As `linear`, with norm_weight and norm_bias [N] -> y and LayerNorm(y), both [..., N].

    ValueError names what does not fit. `gpu` and `config` override the device's own.
    """
    op = "linear_norm"
    check(op, x, weight, bias, scale, residual)
    N, K = weight.shape
    if N > layer_norm.MAX_WIDTH:
        refuse(op, f"weight is {tuple(weight.shape)}, expected at most {layer_norm.MAX_WIDTH} rows")
    check_tensor(op, "norm_weight", norm_weight, (N,), x.device)
    check_tensor(op, "norm_bias", norm_bias, (N,), x.device)
    y = torch.empty((*x.shape[:-1], N), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y, torch.empty_like(y)
    x2, w, r2 = rows(x), rows(weight), None if residual is None else rows(residual)
    M = len(x2)
    gpu = gpu or gpu_of(x.device)
    descriptors = gpu.bulk_copies and describable(x2, w, y.view(M, N), r2)
    aligned = x2.stride(0) % 8 == 0 and w.stride(0) % 8 == 0
    c = config or config_for(M, N, K, x.dtype, descriptors, aligned, gpu)
    if c.splits == 1:
        run(x2, w, bias, None, scale, r2, y, gpu=gpu, config=c)
        return y, layer_norm.launch(y, norm_weight, norm_bias, eps, gpu=gpu)
    share = cdiv(cdiv(K, c.splits), c.block_k) * c.block_k
    partial = torch.empty((cdiv(K, share), M, N), dtype=torch.float32, device=x.device)
    launch_tiles(
        x2, w, c, descriptors, gpu, None, None,
        None, None, None, None, None, partial, 0.0, ACTIVATION=identity, PARTS=1, PART=PART,
    )  # fmt: skip
    normed = torch.empty_like(y)
    rule = layer_norm.launch_config(N)
    bias, scale = (t if t is None else t.contiguous() for t in (bias, scale))
    _sum_norm_kernel[(cdiv(M, rule["BLOCK_M"]),)](
        partial, bias, scale, r2, norm_weight.contiguous(), norm_bias.contiguous(), y, normed,
        M, N, 0 if r2 is None else r2.stride(0), eps, SPLITS=len(partial),
        # left to itself ptxas takes few registers for many blocks, and spills
        maxnreg=min(255, 65536 // (32 * rule["num_warps"])),
        **rule, **dependent(gpu), **COMPILE_OPTIONS,
    )  # fmt: skip
    return y, normed


def _fake(x, weight, bias, scale, residual, norm_weight, norm_bias, eps):
    y = x.new_empty((*x.shape[:-1], weight.shape[0]))
    return y, torch.empty_like(y)


linear_norm = operator(
    "linear_norm(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? residual,"
    " Tensor norm_weight, Tensor norm_bias, float eps) -> (Tensor, Tensor)",
    launch,
    _fake,
)
