"""The two kernels of a matrix product with an epilogue; linear.py says what they compute, and which of them when.

Both compute [M, N] = x [M, K] w [N, K]^T in fp32 and hand each tile to one epilogue. What is None is left out when the
kernel is compiled: a pointer that is None is a constant.

x_stats: x is not normalized yet, its rows' statistics are here (folding.py), and LayerNorm is folded into w.
y_stats: where the statistics of the rows of y are written.
partial: x w^T over one of program_id(1)'s shares of K, in fp32, is all that is written.
"""

import triton
import triton.language as tl

from .dependent import prefetch, wait
from .folding import combined, store_parts


@triton.jit
def _epilogue(
    acc,  # [rows, columns] fp32
    offs_m, offs_n, M, N, K,
    bias_ptr, scale_ptr, x_stats_ptr, column_sums_ptr, eps,
    ACTIVATION: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    inside = offs_n < N
    if x_stats_ptr is not None:
        mean, rstd = combined(x_stats_ptr, offs_m, M, K, eps, PARTS, PART)
        sums = tl.load(column_sums_ptr + offs_n, mask=inside, other=0.0)
        acc = (acc - mean[:, None] * sums[None, :]) * rstd[:, None]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n, mask=inside, other=0.0).to(tl.float32)[None, :]
    acc = ACTIVATION(acc)
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + offs_n, mask=inside, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit
def _store_partial(acc, y_ptr, row, col, M, N):
    offs_m = row + tl.arange(0, acc.shape[0])
    offs_n = col + tl.arange(0, acc.shape[1])
    y_ptr += tl.program_id(1).to(tl.int64) * M * N
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    tl.store(y_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :], acc, mask=mask)


@triton.jit
def _store_slice(
    acc, y_desc, residual_desc, row, col, M, N, K,
    bias_ptr, scale_ptr, x_stats_ptr, column_sums_ptr, y_stats_ptr, partial_ptr, eps,
    ACTIVATION: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    if partial_ptr is not None:
        _store_partial(acc, partial_ptr, row, col, M, N)
    else:
        offs_m = row + tl.arange(0, acc.shape[0])
        offs_n = col + tl.arange(0, acc.shape[1])
        y = _epilogue(
            acc, offs_m, offs_n, M, N, K, bias_ptr, scale_ptr, x_stats_ptr, column_sums_ptr, eps,
            ACTIVATION, PARTS, PART,
        )  # fmt: skip
        if residual_desc is not None:
            y += residual_desc.load([row, col]).to(tl.float32)
        y = y.to(y_desc.dtype)
        y_desc.store([row, col], y)
        if y_stats_ptr is not None:
            store_parts(y_stats_ptr, y, offs_m, col, M, N, PART)


@triton.jit
def linear_descriptor_kernel(
    x_desc,  # [M, K] in boxes [BLOCK_M, BLOCK_K]
    w_desc,  # [N, K] in boxes [BLOCK_N, BLOCK_K]
    w_ptr,  # the same with PDL, its rows stride_wn apart, or None
    y_desc,  # [M, N] in boxes [BLOCK_M, BLOCK_N / SLICES], or None
    residual_desc,  # the same, or None
    bias_ptr,  # [N] or None
    scale_ptr,  # [N] or None
    x_stats_ptr,  # [M, PARTS, 2] or None
    column_sums_ptr,  # [N], with x_stats_ptr
    y_stats_ptr,  # [M, N / PART, 2] or None
    partial_ptr,  # [shares of K, M, N] fp32, or None
    M, N, K, K_SHARE, eps, stride_wn,
    ACTIVATION: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr, FLATTEN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles = tl.cdiv(M, BLOCK_M) * tiles_n
    k_first = tl.program_id(1) * K_SHARE
    k_last = tl.minimum(k_first + K_SHARE, K)
    if PDL:
        first = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
        prefetch(w_ptr, first, N, stride_wn, k_first, k_last)
    wait(PDL)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        row = (tile // tiles_n) * BLOCK_M
        col = (tile % tiles_n) * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(k_first, k_last, BLOCK_K):
            # boxes that reach past M, N or K arrive with zeros
            acc = tl.dot(x_desc.load([row, k]), w_desc.load([col, k]).T, acc)
        if SLICES == 1:
            _store_slice(
                acc, y_desc, residual_desc, row, col, M, N, K, bias_ptr, scale_ptr,
                x_stats_ptr, column_sums_ptr, y_stats_ptr, partial_ptr, eps, ACTIVATION, PARTS, PART,
            )  # fmt: skip
        else:
            halves = tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
            left, right = tl.split(halves)
            _store_slice(
                left, y_desc, residual_desc, row, col, M, N, K, bias_ptr, scale_ptr,
                x_stats_ptr, column_sums_ptr, y_stats_ptr, partial_ptr, eps, ACTIVATION, PARTS, PART,
            )  # fmt: skip
            _store_slice(
                right, y_desc, residual_desc, row, col + BLOCK_N // 2, M, N, K, bias_ptr, scale_ptr,
                x_stats_ptr, column_sums_ptr, y_stats_ptr, partial_ptr, eps, ACTIVATION, PARTS, PART,
            )  # fmt: skip


@triton.jit
def linear_pointer_kernel(
    x_ptr,  # [M, K], rows stride_xm apart, last axis contiguous
    w_ptr,  # [N, K], rows stride_wn apart, last axis contiguous
    y_ptr,  # [M, N], contiguous, or None
    residual_ptr,  # [M, N], rows stride_rm apart, or None
    bias_ptr, scale_ptr, x_stats_ptr, column_sums_ptr, y_stats_ptr, partial_ptr,  # as above
    M, N, K, K_SHARE, eps, stride_xm, stride_wn, stride_rm,
    ACTIVATION: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr,
    PRECISION: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait(PDL)
    tiles_n = tl.cdiv(N, BLOCK_N)
    row = (tl.program_id(0) // tiles_n) * BLOCK_M
    col = (tl.program_id(0) % tiles_n) * BLOCK_N
    offs_m = row.to(tl.int64) + tl.arange(0, BLOCK_M)
    offs_n = col + tl.arange(0, BLOCK_N)
    k_first = tl.program_id(1) * K_SHARE
    k_last = tl.minimum(k_first + K_SHARE, K)
    offs_k = k_first + tl.arange(0, BLOCK_K)
    # rows past the end read the last row again and are not stored
    x_ptrs = x_ptr + tl.minimum(offs_m, M - 1)[:, None] * stride_xm + offs_k[None, :]
    w_ptrs = w_ptr + tl.minimum(offs_n, N - 1).to(tl.int64)[None, :] * stride_wn + offs_k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(k_first, k_last, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs)
            w = tl.load(w_ptrs)
        else:
            left = k_last - (k - k_first)
            x = tl.load(x_ptrs, mask=offs_k[None, :] < left, other=0.0)
            w = tl.load(w_ptrs, mask=offs_k[:, None] < left, other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K
    if partial_ptr is not None:
        _store_partial(acc, partial_ptr, row, col, M, N)
    else:
        y = _epilogue(
            acc, offs_m, offs_n, M, N, K, bias_ptr, scale_ptr, x_stats_ptr, column_sums_ptr, eps,
            ACTIVATION, PARTS, PART,
        )  # fmt: skip
        mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
        if residual_ptr is not None:
            r_ptrs = residual_ptr + offs_m[:, None] * stride_rm + offs_n[None, :]
            y += tl.load(r_ptrs, mask=mask, other=0.0).to(tl.float32)
        y = y.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + offs_m[:, None] * N + offs_n[None, :], y, mask=mask)
        if y_stats_ptr is not None:
            store_parts(y_stats_ptr, y, offs_m, col, M, N, PART)


@triton.jit
def epilogue_kernel(
    y_ptr,  # [M, N], contiguous: x w^T + bias, replaced by the result
    residual_ptr,  # [M, N], rows stride_rm apart, or None
    scale_ptr,  # [N] or None
    M, N, stride_rm,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait(PDL)
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    y_ptrs = y_ptr + offs_m[:, None] * N + offs_n[None, :]
    y = ACTIVATION(tl.load(y_ptrs, mask=mask, other=0.0).to(tl.float32))
    if scale_ptr is not None:
        y *= tl.load(scale_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        r_ptrs = residual_ptr + offs_m[:, None] * stride_rm + offs_n[None, :]
        y += tl.load(r_ptrs, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=mask)
