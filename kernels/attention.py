"""Attention: softmax(q k^T * scale) v for every head, exact, in one launch, scores never in memory.

q, k and v are read by stride, so they may be three views of one packed projection [B, N, 3, H, D]; the result is written as
[B, N, H * D], ready for the output projection: nothing is permuted or copied. 4 B H Nq N D operations; q, k, v and the
result cross memory once (a head's k and v are shared by its query tiles through the L2 cache).

With t = s * scale * log2(e), softmax is exp2(t - max t) / sum: one FMA and one exponential a score. Two kernels:

- one pass: up to 272 keys sit in at most three chunks (197 = 128 + 64 + 16 lanes), all scores are known before the first
  exponential, and there is no running maximum to correct;
- flash (Dao et al. 2022, algorithm 1; the sum is divided out at the end as in Dao 2023): the tail of the keys in a chunk
  of its own width, then blocks of BLOCK_N with a running maximum.

A head dimension that is no power of two is covered by up to three parts, each a power of two: 72 = 64 + 16 lanes with 8
masked, where padding to 128 would waste 44% of the matrix work.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import COMPILE_OPTIONS, check, check_floats, operator
from .linear import fp32_precision
from .tuning import Gpu, gpu_of

MAX_HEAD_DIM = 128
_LOG2_E = 1.4426950408889634


def attention_ref(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The definition; tests evaluate it in float64."""
    s = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    return torch.einsum("bhqk,bkhd->bqhd", s.softmax(-1), v).flatten(2)


@dataclass(frozen=True)
class Config:
    block_m: int
    chunks: tuple[int, int, int]  # key chunks of the one-pass kernel; _FLASH: the other one
    block_n: int  # keys a block in the flash kernel
    num_warps: int
    num_stages: int
    widest: int = MAX_HEAD_DIM  # lanes of the head in one product


_FLASH = (0, 0, 0)


def head_parts(D: int, widest: int = MAX_HEAD_DIM) -> tuple[int, int, int]:
    """Powers of two from 16 to `widest` that cover D lanes with under 16 to spare, three at most: 72 -> (64, 16, 0)."""
    parts, lanes = [], triton.cdiv(D, 16) * 16
    while lanes:
        parts.append(min(widest, 1 << (lanes.bit_length() - 1)))
        lanes -= parts[-1]
    return tuple(parts + [0] * (3 - len(parts)))


def key_chunks(N: int) -> tuple[int, int, int]:
    """At most three chunks, each a power of two from 16 to 128, that cover N keys with the fewest lanes, then the fewest
    chunks; _FLASH where three do not reach."""
    sizes = (0, 16, 32, 64, 128)
    covers = [
        (a, b, c) for a in sizes[1:] for b in sizes for c in sizes if a >= b >= c and a + b + c >= N
    ]
    return min(covers, key=lambda c: (sum(c), 3 - c.count(0)), default=_FLASH)


def launch_config(Nq: int, N: int, D: int, itemsize: int, gpu: Gpu) -> Config:
    """Small query tiles and few warps: two to four blocks share a multiprocessor, and the softmax of one overlaps the
    matrix products of another. Every choice compiles without spills. Pure."""
    lanes = sum(head_parts(D))
    if itemsize == 4:
        # IEEE fp32 has no matrix unit: a product keeps its operands in registers, so it is kept narrow
        narrow = lanes <= 96
        return Config(16, _FLASH, 32 if narrow else 16, 4 if narrow else 8, 2 if narrow else 1, 32 if narrow else 64)
    block_m = 16 if Nq <= 16 else 64
    chunks = key_chunks(N)
    # where the matrix unit reads only registers, the scores of more than 128 keys leave none for its operands
    if D in (16, 32, 64) and 0 < sum(chunks) <= (272 if gpu.bulk_copies else 128):
        return Config(block_m, chunks, 64, 4, 1)
    if not gpu.bulk_copies and lanes > 96:
        return Config(128 if Nq > 16 else 16, _FLASH, 64 if Nq > 16 else 32, 8 if Nq > 16 else 4, 2)
    stage = 2 * 64 * 2 * lanes  # bytes of 64 keys and 64 values
    return Config(block_m, _FLASH, 64, 4, 3 if 3 * stage <= gpu.smem // 2 else 2)


@triton.jit
def _lanes(ptr, offs, stride, N, D: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, TAIL: tl.constexpr):
    """Rows `offs` of one head, lanes FIRST .. FIRST + WIDTH: [rows, WIDTH], zero past N (checked if TAIL) and past D."""
    lanes = FIRST + tl.arange(0, WIDTH)
    ptrs = ptr + offs[:, None] * stride + lanes[None, :]
    if TAIL and FIRST + WIDTH > D:
        return tl.load(ptrs, mask=(offs < N)[:, None] & (lanes < D)[None, :], other=0.0)
    elif TAIL:
        return tl.load(ptrs, mask=(offs < N)[:, None], other=0.0)
    elif FIRST + WIDTH > D:
        return tl.load(ptrs, mask=(lanes < D)[None, :], other=0.0)
    else:
        return tl.load(ptrs)


@triton.jit
def _store_lanes(ptr, offs, stride, N, o, D: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    lanes = FIRST + tl.arange(0, WIDTH)
    mask = (offs < N)[:, None] & (lanes < D)[None, :]
    tl.store(ptr + offs[:, None] * stride + lanes[None, :], o.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _tile(Nq, H, BLOCK_M: tl.constexpr):
    """This program's image, head and query rows; the tiles of one head run side by side."""
    tiles = tl.cdiv(Nq, BLOCK_M)
    bh = tl.program_id(0) // tiles
    offs_m = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    return (bh // H).to(tl.int64), bh % H, offs_m


@triton.jit
def _one_pass_kernel(
    q_ptr,  # [B, Nq, H, D] by stride, lanes contiguous
    k_ptr,  # [B, N, H, D] by stride, lanes contiguous
    v_ptr,  # the same
    o_ptr,  # [B, Nq, H, D], contiguous
    Nq, N, H, qk_scale,
    stride_qb, stride_kb, stride_vb,
    stride_qn, stride_kn, stride_vn,
    # constants, so that the compiler sees how heads are aligned
    stride_qh: tl.constexpr, stride_kh: tl.constexpr, stride_vh: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    C0: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr,
):  # fmt: skip
    b, h, offs_m = _tile(Nq, H, BLOCK_M)
    q_ptr += b * stride_qb + h * stride_qh
    k_ptr += b * stride_kb + h * stride_kh
    v_ptr += b * stride_vb + h * stride_vh
    o_ptr += (b * Nq * H + h) * D
    # every load is issued before the first product waits for one
    n0 = tl.arange(0, C0)
    q = _lanes(q_ptr, offs_m, stride_qn, Nq, D, 0, D, True)
    k0 = _lanes(k_ptr, n0, stride_kn, N, D, 0, D, C1 == 0)
    if C1 > 0:
        n1 = C0 + tl.arange(0, C1)
        k1 = _lanes(k_ptr, n1, stride_kn, N, D, 0, D, C2 == 0)
    if C2 > 0:
        n2 = C0 + C1 + tl.arange(0, C2)
        k2 = _lanes(k_ptr, n2, stride_kn, N, D, 0, D, True)
    v0 = _lanes(v_ptr, n0, stride_vn, N, D, 0, D, C1 == 0)
    if C1 > 0:
        v1 = _lanes(v_ptr, n1, stride_vn, N, D, 0, D, C2 == 0)
    if C2 > 0:
        v2 = _lanes(v_ptr, n2, stride_vn, N, D, 0, D, True)

    s0 = tl.dot(q, k0.T)  # [BLOCK_M, C0]
    if C1 == 0:
        s0 = tl.where((n0 < N)[None, :], s0, float("-inf"))
    m_i = tl.max(s0, 1)
    if C1 > 0:
        s1 = tl.dot(q, k1.T)
        if C2 == 0:
            s1 = tl.where((n1 < N)[None, :], s1, float("-inf"))
        m_i = tl.maximum(m_i, tl.max(s1, 1))
    if C2 > 0:
        s2 = tl.where((n2 < N)[None, :], tl.dot(q, k2.T), float("-inf"))
        m_i = tl.maximum(m_i, tl.max(s2, 1))
    m_i = m_i * qk_scale

    p = tl.exp2(s0 * qk_scale - m_i[:, None])
    l_i = tl.sum(p, 1)
    acc = tl.dot(p.to(v0.dtype), v0)  # [BLOCK_M, D]
    if C1 > 0:
        p = tl.exp2(s1 * qk_scale - m_i[:, None])
        l_i += tl.sum(p, 1)
        acc = tl.dot(p.to(v1.dtype), v1, acc)
    if C2 > 0:
        p = tl.exp2(s2 * qk_scale - m_i[:, None])
        l_i += tl.sum(p, 1)
        acc = tl.dot(p.to(v2.dtype), v2, acc)
    _store_lanes(o_ptr, offs_m, H * D, Nq, acc / l_i[:, None], D, 0, D)


@triton.jit
def _flash_step(
    q0, q1, q2, m_i, l_i, o0, o1, o2, k_ptr, v_ptr, offs_n, stride_kn, stride_vn, N, qk_scale,
    D: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr,
    TAIL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    k = _lanes(k_ptr, offs_n, stride_kn, N, D, 0, W0, TAIL)
    s = tl.dot(q0, k.T, input_precision=PRECISION)  # [BLOCK_M, keys]
    if W1 > 0:
        k = _lanes(k_ptr, offs_n, stride_kn, N, D, W0, W1, TAIL)
        s = tl.dot(q1, k.T, s, input_precision=PRECISION)
    if W2 > 0:
        k = _lanes(k_ptr, offs_n, stride_kn, N, D, W0 + W1, W2, TAIL)
        s = tl.dot(q2, k.T, s, input_precision=PRECISION)
    if TAIL:
        s = tl.where((offs_n < N)[None, :], s, float("-inf"))
    m_new = tl.maximum(m_i, tl.max(s, 1) * qk_scale)
    alpha = tl.exp2(m_i - m_new)
    p = tl.exp2(s * qk_scale - m_new[:, None])
    l_i = l_i * alpha + tl.sum(p, 1)
    v = _lanes(v_ptr, offs_n, stride_vn, N, D, 0, W0, TAIL)
    p = p.to(v.dtype)
    o0 = tl.dot(p, v, o0 * alpha[:, None], input_precision=PRECISION)
    if W1 > 0:
        v = _lanes(v_ptr, offs_n, stride_vn, N, D, W0, W1, TAIL)
        o1 = tl.dot(p, v, o1 * alpha[:, None], input_precision=PRECISION)
    if W2 > 0:
        v = _lanes(v_ptr, offs_n, stride_vn, N, D, W0 + W1, W2, TAIL)
        o2 = tl.dot(p, v, o2 * alpha[:, None], input_precision=PRECISION)
    return m_new, l_i, o0, o1, o2


@triton.jit
def _flash_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr,  # as in _one_pass_kernel
    Nq, N, H, qk_scale,
    stride_qb, stride_kb, stride_vb,
    stride_qn, stride_kn, stride_vn,
    stride_qh: tl.constexpr, stride_kh: tl.constexpr, stride_vh: tl.constexpr,
    D: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    b, h, offs_m = _tile(Nq, H, BLOCK_M)
    q_ptr += b * stride_qb + h * stride_qh
    k_ptr += b * stride_kb + h * stride_kh
    v_ptr += b * stride_vb + h * stride_vh
    o_ptr += (b * Nq * H + h) * D
    m_i = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    q0 = _lanes(q_ptr, offs_m, stride_qn, Nq, D, 0, W0, True)
    o0 = tl.zeros((BLOCK_M, W0), tl.float32)
    # a part that the head has not is never touched: any value stands in for it
    q1, q2, o1, o2 = q0, q0, o0, o0
    if W1 > 0:
        q1 = _lanes(q_ptr, offs_m, stride_qn, Nq, D, W0, W1, True)
        o1 = tl.zeros((BLOCK_M, W1), tl.float32)
    if W2 > 0:
        q2 = _lanes(q_ptr, offs_m, stride_qn, Nq, D, W0 + W1, W2, True)
        o2 = tl.zeros((BLOCK_M, W2), tl.float32)
    full = N // BLOCK_N * BLOCK_N
    # the tail goes first: behind the pipelined loop its rescaling makes ptxas serialise every wgmma
    if TAIL_N > 0:
        m_i, l_i, o0, o1, o2 = _flash_step(
            q0, q1, q2, m_i, l_i, o0, o1, o2, k_ptr, v_ptr, full + tl.arange(0, TAIL_N),
            stride_kn, stride_vn, N, qk_scale, D, W0, W1, W2, True, PRECISION,
        )  # fmt: skip
    for n in range(0, full, BLOCK_N):
        m_i, l_i, o0, o1, o2 = _flash_step(
            q0, q1, q2, m_i, l_i, o0, o1, o2, k_ptr, v_ptr, n + tl.arange(0, BLOCK_N),
            stride_kn, stride_vn, N, qk_scale, D, W0, W1, W2, False, PRECISION,
        )  # fmt: skip
    _store_lanes(o_ptr, offs_m, H * D, Nq, o0 / l_i[:, None], D, 0, W0)
    if W1 > 0:
        _store_lanes(o_ptr, offs_m, H * D, Nq, o1 / l_i[:, None], D, W0, W1)
    if W2 > 0:
        _store_lanes(o_ptr, offs_m, H * D, Nq, o2 / l_i[:, None], D, W0 + W1, W2)


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    gpu: Gpu | None = None,
    config: Config | None = None,
) -> Tensor:
    """q [B, Nq, H, D], k and v [B, N, H, D], any strides -> [B, Nq, H * D] in q.dtype.

    ValueError names shapes and dtypes that do not fit; D is at most 128. A tensor whose last axis is not contiguous is
    copied first. `gpu` and `config` override the device's own, for tests and for compiling without one.
    """
    shapes = f"q is {tuple(q.shape)}, k is {tuple(k.shape)}, v is {tuple(v.shape)}"
    check("attention", q.dim() == 4 and k.shape == v.shape and k.dim() == 4, shapes)
    B, Nq, H, D = q.shape
    N = k.shape[1]
    check("attention", k.shape == (B, N, H, D) and N > 0, shapes)
    check("attention", 0 < D <= MAX_HEAD_DIM, f"head_dim is {D}, supported are 1 to {MAX_HEAD_DIM}")
    check("attention", scale > 0, f"scale is {scale}")
    check_floats("attention", q=q)
    check_floats("attention", q.dtype, q=q, k=k, v=v)
    o = torch.empty((B, Nq, H * D), dtype=q.dtype, device=q.device)
    if o.numel() == 0:
        return o
    q, k, v = (t if t.stride(-1) == 1 or D == 1 else t.contiguous() for t in (q, k, v))
    check("attention", max(Nq, N) * max(q.stride(1), k.stride(1), v.stride(1)) < 2**31, f"{shapes}: too large")
    gpu = gpu or gpu_of(q.device)
    c = config or launch_config(Nq, N, D, q.element_size(), gpu)
    grid = (triton.cdiv(Nq, c.block_m) * B * H,)
    strides = [t.stride(i) for i in (0, 1, 2) for t in (q, k, v)]
    args = (q, k, v, o, Nq, N, H, scale * _LOG2_E, *strides)
    options = dict(num_warps=c.num_warps, num_stages=c.num_stages, **COMPILE_OPTIONS)
    if c.chunks[0]:
        C0, C1, C2 = c.chunks
        _one_pass_kernel[grid](*args, D=D, BLOCK_M=c.block_m, C0=C0, C1=C1, C2=C2, **options)
    else:
        W0, W1, W2 = head_parts(D, c.widest)
        tail = N % c.block_n
        _flash_kernel[grid](
            *args, D=D, W0=W0, W1=W1, W2=W2, BLOCK_M=c.block_m, BLOCK_N=c.block_n,
            TAIL_N=max(16, triton.next_power_of_2(tail)) if tail else 0,
            PRECISION=fp32_precision(), **options,
        )  # fmt: skip
    return o


def _fake(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return q.new_empty((*q.shape[:2], q.shape[2] * q.shape[3]))


attention = operator(
    "attention(Tensor q, Tensor k, Tensor v, float scale) -> Tensor", launch, _fake
)
