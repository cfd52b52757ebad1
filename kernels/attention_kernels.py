"""The two attention kernels; attention.py says what they compute, and which of them when.

A program takes one tile of queries, of one head or of HEADS heads one after the other: q_ptr, k_ptr, v_ptr
[B, N, H, D] by stride, lanes contiguous, and o_ptr [B, Nq, H, D], contiguous. Lanes past D and rows past N
are loaded as zeros. The last tile of a head, where few of its rows are left, is TAIL_M rows high instead
of BLOCK_M; 0: it is like the others.
"""

import triton
import triton.language as tl

from .attention_loads import counting, halves, lanes, store_lanes
from .dependent import wait


@triton.jit
def _tile(Nq, H, BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr, HEADS: tl.constexpr):
    """This program's image, first head, first query row, and whether its tile is TAIL_M rows high.

    The tiles of one head run side by side.
    """
    tiles = tl.cdiv(Nq, BLOCK_M)
    group = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    groups = H // HEADS
    last = (TAIL_M > 0) & (tile == tiles - 1)
    return (group // groups).to(tl.int64), group % groups * HEADS, tile * BLOCK_M, last


@triton.jit
def _scores(q, q_hi, k, k_hi, counts, ROPE: tl.constexpr, CHECKED: tl.constexpr):
    """q k^T [rows, keys], with ROPE that of both halves of the lanes; -inf for keys that do not count, if CHECKED."""
    s = tl.dot(q, k.T)
    if ROPE:
        s = tl.dot(q_hi, k_hi.T, s)
    if CHECKED:
        s = tl.where(counts[None, :], s, float("-inf"))
    return s


@triton.jit
def _one_pass_tile(
    q_ptr, k_ptr, v_ptr, o_ptr, mask_ptr, rope_ptr, offs_m, Nq, N, H, qk_scale, prefix,
    stride_qn, stride_kn, stride_vn, stride_mn,
    D: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr,
):  # fmt: skip
    MASK: tl.constexpr = mask_ptr is not None
    ROPE: tl.constexpr = rope_ptr is not None
    # every load is issued before the first product waits for one
    n0 = tl.arange(0, C0)
    q, q_hi = halves(q_ptr, rope_ptr, offs_m, stride_qn, Nq, N, prefix, D, True)
    k0, k0_hi = halves(k_ptr, rope_ptr, n0, stride_kn, N, N, prefix, D, C1 == 0)
    on0 = counting(mask_ptr, n0, stride_mn, N, C1 == 0)
    if C1 > 0:
        n1 = C0 + tl.arange(0, C1)
        k1, k1_hi = halves(k_ptr, rope_ptr, n1, stride_kn, N, N, prefix, D, C2 == 0)
        on1 = counting(mask_ptr, n1, stride_mn, N, C2 == 0)
    if C2 > 0:
        n2 = C0 + C1 + tl.arange(0, C2)
        k2, k2_hi = halves(k_ptr, rope_ptr, n2, stride_kn, N, N, prefix, D, True)
        on2 = counting(mask_ptr, n2, stride_mn, N, True)
    v0 = lanes(v_ptr, n0, stride_vn, N, D, 0, D, C1 == 0)
    if C1 > 0:
        v1 = lanes(v_ptr, n1, stride_vn, N, D, 0, D, C2 == 0)
    if C2 > 0:
        v2 = lanes(v_ptr, n2, stride_vn, N, D, 0, D, True)

    s0 = _scores(q, q_hi, k0, k0_hi, on0, ROPE, MASK or C1 == 0)  # [BLOCK_M, C0]
    m_i = tl.max(s0, 1)
    if C1 > 0:
        s1 = _scores(q, q_hi, k1, k1_hi, on1, ROPE, MASK or C2 == 0)
        m_i = tl.maximum(m_i, tl.max(s1, 1))
    if C2 > 0:
        s2 = _scores(q, q_hi, k2, k2_hi, on2, ROPE, True)
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
    store_lanes(o_ptr, offs_m, H * D, Nq, acc / l_i[:, None], D, 0, D)


@triton.jit
def one_pass_kernel(
    q_ptr,  # [B, Nq, H, D] by stride, lanes contiguous
    k_ptr,  # [B, N, H, D] by stride, lanes contiguous
    v_ptr,  # the same
    o_ptr,  # [B, Nq, H, D], contiguous
    mask_ptr,  # [B, N] by stride: 0 at keys that do not count; None: all do
    rope_ptr,  # [2, N - prefix, D / 2], contiguous: of the tokens from `prefix` on; None: nothing turns
    Nq, N, H, qk_scale, prefix,
    stride_qb, stride_kb, stride_vb, stride_mb,
    stride_qn, stride_kn, stride_vn, stride_mn,
    # constants, so that the compiler sees how heads are aligned
    stride_qh: tl.constexpr, stride_kh: tl.constexpr, stride_vh: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr, HEADS: tl.constexpr,
    C0: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait(PDL)
    b, first, row, last = _tile(Nq, H, BLOCK_M, TAIL_M, HEADS)
    if mask_ptr is not None:
        mask_ptr += b * stride_mb
    for h in tl.range(first, first + HEADS):
        q = q_ptr + b * stride_qb + h * stride_qh
        k = k_ptr + b * stride_kb + h * stride_kh
        v = v_ptr + b * stride_vb + h * stride_vh
        o = o_ptr + (b * Nq * H + h) * D
        if last:
            # never compiled for TAIL_M = 0, where it would be a tile of no rows
            _one_pass_tile(
                q, k, v, o, mask_ptr, rope_ptr, row + tl.arange(0, TAIL_M if TAIL_M > 0 else BLOCK_M),
                Nq, N, H, qk_scale, prefix, stride_qn, stride_kn, stride_vn, stride_mn, D, C0, C1, C2,
            )  # fmt: skip
        else:
            _one_pass_tile(
                q, k, v, o, mask_ptr, rope_ptr, row + tl.arange(0, BLOCK_M),
                Nq, N, H, qk_scale, prefix, stride_qn, stride_kn, stride_vn, stride_mn, D, C0, C1, C2,
            )  # fmt: skip


@triton.jit
def _flash_step(
    q0, q1, q2, m_i, l_i, o0, o1, o2, k_ptr, v_ptr, mask_ptr, rope_ptr, offs_n,
    stride_kn, stride_vn, stride_mn, N, qk_scale, prefix,
    D: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr,
    TAIL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    MASK: tl.constexpr = mask_ptr is not None
    counts = counting(mask_ptr, offs_n, stride_mn, N, TAIL)
    if rope_ptr is not None:
        k, k1 = halves(k_ptr, rope_ptr, offs_n, stride_kn, N, N, prefix, D, TAIL)
        s = tl.dot(q0, k.T, input_precision=PRECISION)  # [BLOCK_M, keys]
        s = tl.dot(q1, k1.T, s, input_precision=PRECISION)
    else:
        k = lanes(k_ptr, offs_n, stride_kn, N, D, 0, W0, TAIL)
        s = tl.dot(q0, k.T, input_precision=PRECISION)
        if W1 > 0:
            k = lanes(k_ptr, offs_n, stride_kn, N, D, W0, W1, TAIL)
            s = tl.dot(q1, k.T, s, input_precision=PRECISION)
        if W2 > 0:
            k = lanes(k_ptr, offs_n, stride_kn, N, D, W0 + W1, W2, TAIL)
            s = tl.dot(q2, k.T, s, input_precision=PRECISION)
    if MASK or TAIL:
        s = tl.where(counts[None, :], s, float("-inf"))
    m_new = tl.maximum(m_i, tl.max(s, 1) * qk_scale)
    alpha = tl.exp2(m_i - m_new)
    p = tl.exp2(s * qk_scale - m_new[:, None])
    l_i = l_i * alpha + tl.sum(p, 1)
    v = lanes(v_ptr, offs_n, stride_vn, N, D, 0, W0, TAIL)
    p = p.to(v.dtype)
    o0 = tl.dot(p, v, o0 * alpha[:, None], input_precision=PRECISION)
    if W1 > 0:
        v = lanes(v_ptr, offs_n, stride_vn, N, D, W0, W1, TAIL)
        o1 = tl.dot(p, v, o1 * alpha[:, None], input_precision=PRECISION)
    if W2 > 0:
        v = lanes(v_ptr, offs_n, stride_vn, N, D, W0 + W1, W2, TAIL)
        o2 = tl.dot(p, v, o2 * alpha[:, None], input_precision=PRECISION)
    return m_new, l_i, o0, o1, o2


@triton.jit
def _flash_tile(
    q_ptr, k_ptr, v_ptr, o_ptr, mask_ptr, rope_ptr, offs_m, Nq, N, H, qk_scale, prefix,
    stride_qn, stride_kn, stride_vn, stride_mn,
    D: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr,
    BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    BLOCK_M: tl.constexpr = offs_m.shape[0]
    # the least finite score instead of -inf, where a block may have no key: -inf less -inf is NaN
    m_i = tl.full(
        (BLOCK_M,), float("-inf") if mask_ptr is None else -3.4028234663852886e38, tl.float32
    )
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    # a part that the head has not is never touched: any value stands in for it
    if rope_ptr is not None:
        q0, q1 = halves(q_ptr, rope_ptr, offs_m, stride_qn, Nq, N, prefix, D, True)
    else:
        q0 = lanes(q_ptr, offs_m, stride_qn, Nq, D, 0, W0, True)
        q1 = q0
        if W1 > 0:
            q1 = lanes(q_ptr, offs_m, stride_qn, Nq, D, W0, W1, True)
    q2 = q0
    o0 = tl.zeros((BLOCK_M, W0), tl.float32)
    o1, o2 = o0, o0
    if W1 > 0:
        o1 = tl.zeros((BLOCK_M, W1), tl.float32)
    if W2 > 0:
        # with rope_ptr there is none: its heads are powers of two
        q2 = lanes(q_ptr, offs_m, stride_qn, Nq, D, W0 + W1, W2, True)
        o2 = tl.zeros((BLOCK_M, W2), tl.float32)
    full = N // BLOCK_N * BLOCK_N
    # the tail goes first: behind the pipelined loop its rescaling makes ptxas serialise every wgmma
    if TAIL_N > 0:
        m_i, l_i, o0, o1, o2 = _flash_step(
            q0, q1, q2, m_i, l_i, o0, o1, o2, k_ptr, v_ptr, mask_ptr, rope_ptr, full + tl.arange(0, TAIL_N),
            stride_kn, stride_vn, stride_mn, N, qk_scale, prefix, D, W0, W1, W2, True, PRECISION,
        )  # fmt: skip
    for n in range(0, full, BLOCK_N):
        m_i, l_i, o0, o1, o2 = _flash_step(
            q0, q1, q2, m_i, l_i, o0, o1, o2, k_ptr, v_ptr, mask_ptr, rope_ptr, n + tl.arange(0, BLOCK_N),
            stride_kn, stride_vn, stride_mn, N, qk_scale, prefix, D, W0, W1, W2, False, PRECISION,
        )  # fmt: skip
    store_lanes(o_ptr, offs_m, H * D, Nq, o0 / l_i[:, None], D, 0, W0)
    if W1 > 0:
        store_lanes(o_ptr, offs_m, H * D, Nq, o1 / l_i[:, None], D, W0, W1)
    if W2 > 0:
        store_lanes(o_ptr, offs_m, H * D, Nq, o2 / l_i[:, None], D, W0 + W1, W2)


@triton.jit
def flash_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, mask_ptr, rope_ptr,  # as in one_pass_kernel
    Nq, N, H, qk_scale, prefix,
    stride_qb, stride_kb, stride_vb, stride_mb,
    stride_qn, stride_kn, stride_vn, stride_mn,
    stride_qh: tl.constexpr, stride_kh: tl.constexpr, stride_vh: tl.constexpr,
    D: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr,
    BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait(PDL)
    b, h, row, last = _tile(Nq, H, BLOCK_M, TAIL_M, 1)
    q_ptr += b * stride_qb + h * stride_qh
    k_ptr += b * stride_kb + h * stride_kh
    v_ptr += b * stride_vb + h * stride_vh
    o_ptr += (b * Nq * H + h) * D
    if mask_ptr is not None:
        mask_ptr += b * stride_mb
    if last:
        _flash_tile(
            q_ptr, k_ptr, v_ptr, o_ptr, mask_ptr, rope_ptr, row + tl.arange(0, TAIL_M if TAIL_M > 0 else BLOCK_M),
            Nq, N, H, qk_scale, prefix, stride_qn, stride_kn, stride_vn, stride_mn,
            D, W0, W1, W2, BLOCK_N, TAIL_N, PRECISION,
        )  # fmt: skip
    else:
        _flash_tile(
            q_ptr, k_ptr, v_ptr, o_ptr, mask_ptr, rope_ptr, row + tl.arange(0, BLOCK_M),
            Nq, N, H, qk_scale, prefix, stride_qn, stride_kn, stride_vn, stride_mn,
            D, W0, W1, W2, BLOCK_N, TAIL_N, PRECISION,
        )  # fmt: skip
