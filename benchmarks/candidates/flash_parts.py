"""The warps of flash_specialised: the copy warp, the consumers, and the barriers between them.

Barriers (what a wait for a parity means, and why one thread may arrive for four warps, is in
gemm_parts.py). The ring has STAGES stages of one block of keys and of values each; load i, counted over all
tiles of the program, is use u = i // STAGES of stage i % STAGES.

    k_ready[s], v_ready[s]  one arrival and the bytes      the copy warp announces, the copies complete
    k_empty[s], v_empty[s]  CONSUMERS arrivals             each consumer, when its product is complete
    q_ready[c]              one arrival and the bytes      the copy warp, tile j completes phase j
    q_empty[c]              one arrival                    consumer c, after the last S of its tile

- Every consumer takes every load of every tile in order, so before it waits for phase u of
  k_ready[s] it has seen phases 0 .. u - 1, and u + 1 cannot complete before it releases u: a parity
  names the phase. The same holds for v, and for q with one load a tile. The copy warp waits
  for phase u - 1 of k_empty, whose phase u needs a load that it has not yet made. A consumer whose
  64 rows lie past Nq does all the same on zeros, and its store writes nothing.
- No deadlock. The copy warp's order is q, then k(i), v(i) for i = 0, 1, ...; a consumer takes
  q, k(0), then k(i), v(i-1), and at the end v(last). While it waits for k(i) it has released all k
  below i and all v below i - 1, and v(i-1) and k(i) need the release of v(i-1-STAGES) and
  k(i-STAGES); v(i-1) itself is loaded before k(i), which the consumer has. So one stage would do,
  and more are for prefetching. The next tile's q needs the last S of this tile, which needs no q.
- p is read from registers by a product in flight: it is kept alive to the wait.
- The result leaves through a buffer of its own: written by threads, `fence_async_shared`, read by
  the copy engine; `store_wait(0)` before the next tile writes to it, and before the end.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .copies import copy_in, copy_out, store_wait


@gluon.jit
def _copy(desc, rest_desc, smem, rest, full, coords, W0: gl.constexpr, W1: gl.constexpr):
    """Starts the copy of rows x (W0 + W1) lanes from [b, row, h] into smem and rest."""
    ROWS: gl.constexpr = smem.shape[1]
    mbarrier.expect(full, ROWS * (W0 + W1) * 2)
    b, row, h = coords
    copy_in(desc, [b, row, h, 0], full, smem)
    if W1 > 0:
        copy_in(rest_desc, [b, row, h, W0], full, rest)


@gluon.jit
def copy_blocks(
    descs,
    smems,
    bars,
    walk,
    H,
    CONSUMERS: gl.constexpr,
    W0: gl.constexpr,
    W1: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The copy warp: of each tile the queries of each consumer, then all keys and values."""
    q_desc, k_desc, v_desc, q_rest_desc, k_rest_desc, v_rest_desc = descs
    q_smem, k_smem, v_smem, q_rest, k_rest, v_rest = smems
    q_ready, q_empty, k_ready, k_empty, v_ready, v_empty = bars
    tiles, tiles_m, blocks = walk
    ROWS: gl.constexpr = q_smem.shape[2]
    BLOCK_N: gl.constexpr = k_smem.shape[2]
    i = 0
    j = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row = (tile % tiles_m) * (CONSUMERS * ROWS)
        b = tile // tiles_m // H
        h = tile // tiles_m % H
        for c in gl.static_range(CONSUMERS):
            mbarrier.wait(q_empty.index(c), (j & 1) ^ 1)
            _copy(
                q_desc, q_rest_desc, q_smem.index(c), q_rest.index(c), q_ready.index(c),
                (b, row + c * ROWS, h), W0, W1,
            )  # fmt: skip
        for step in range(blocks):
            stage = i % STAGES
            parity = ((i // STAGES) & 1) ^ 1
            # the last block first
            start = (step + blocks - 1) % blocks * BLOCK_N
            mbarrier.wait(k_empty.index(stage), parity)
            _copy(
                k_desc, k_rest_desc, k_smem.index(stage), k_rest.index(stage), k_ready.index(stage),
                (b, start, h), W0, W1,
            )  # fmt: skip
            mbarrier.wait(v_empty.index(stage), parity)
            _copy(
                v_desc, v_rest_desc, v_smem.index(stage), v_rest.index(stage), v_ready.index(stage),
                (b, start, h), W0, W1,
            )  # fmt: skip
            i += 1
        j += 1


@gluon.jit
def _issue_scores(q, q_rest, k, k_rest, W0: gl.constexpr, W1: gl.constexpr):
    """q k^T [ROWS, BLOCK_N] fp32, in flight."""
    ROWS: gl.constexpr = q.shape[1]
    BLOCK_N: gl.constexpr = k.shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    zeros = gl.zeros((ROWS, BLOCK_N), gl.float32, layout)
    k0 = k.reshape([BLOCK_N, W0]).permute((1, 0))
    s = warpgroup_mma(q.reshape([ROWS, W0]), k0, zeros, use_acc=False, is_async=True)
    if W1 > 0:
        k1 = k_rest.reshape([BLOCK_N, W1]).permute((1, 0))
        s = warpgroup_mma(q_rest.reshape([ROWS, W1]), k1, s, is_async=True)
    return s


@gluon.jit
def _issue_values(p, v, o, W: gl.constexpr):
    """o + p v [ROWS, W], in flight; the p in registers that it reads, as an operand of o's shape."""
    BLOCK_N: gl.constexpr = v.shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, W, 16])
    a = gl.convert_layout(p, gl.DotOperandLayout(0, layout, 2))
    return warpgroup_mma(a, v.reshape([BLOCK_N, W]), o, is_async=True), a


@gluon.jit
def _rescale(o, factor):
    """o [ROWS, W] times factor [ROWS]."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, o.shape[1], 16])
    return o * gl.convert_layout(factor, gl.SliceLayout(1, layout))[:, None]


@gluon.jit
def consume(
    descs,  # o_desc, o_rest_desc
    smems,  # q_smem, k_smem, v_smem, q_rest, k_rest, v_rest, o_smem, o_rest
    bars,
    walk,
    H,
    N,
    qk_scale,
    CONSUMER: gl.constexpr,
    CONSUMERS: gl.constexpr,
    W0: gl.constexpr,
    W1: gl.constexpr,
    STAGES: gl.constexpr,
):
    o_desc, o_rest_desc = descs
    q_smem, k_smem, v_smem, q_rest, k_rest, v_rest, o_smem, o_rest = smems
    q_ready, q_empty, k_ready, k_empty, v_ready, v_empty = bars
    tiles, tiles_m, blocks = walk
    ROWS: gl.constexpr = q_smem.shape[2]
    BLOCK_N: gl.constexpr = k_smem.shape[2]
    LANES1: gl.constexpr = W1 if W1 > 0 else 16
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    layout0: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, W0, 16])
    layout1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, LANES1, 16])
    dtype: gl.constexpr = q_smem.dtype
    q = q_smem.index(CONSUMER)
    q1 = q_rest.index(CONSUMER)
    i = 0
    j = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row = (tile % tiles_m) * (CONSUMERS * ROWS) + CONSUMER * ROWS
        b = tile // tiles_m // H
        h = tile // tiles_m % H
        mbarrier.wait(q_ready.index(CONSUMER), j & 1)

        # the last block of keys: nothing to correct yet
        stage = i % STAGES
        mbarrier.wait(k_ready.index(stage), (i // STAGES) & 1)
        s = _issue_scores(q, q1, k_smem.index(stage), k_rest.index(stage), W0, W1)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_empty.index(stage), count=1)
        offs_n = (blocks - 1) * BLOCK_N + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, scores))
        s = gl.where((offs_n < N)[None, :], s, float("-inf"))
        m_i = gl.max(s, 1) * qk_scale
        p = gl.exp2(s * qk_scale - m_i[:, None])
        l_i = gl.sum(p, 1)
        p = p.to(dtype)
        o0 = gl.zeros((ROWS, W0), gl.float32, layout0)
        o1 = gl.zeros((ROWS, LANES1), gl.float32, layout1)

        for _ in range(1, blocks):
            before = i % STAGES
            i += 1
            stage = i % STAGES
            mbarrier.wait(k_ready.index(stage), (i // STAGES) & 1)
            s = _issue_scores(q, q1, k_smem.index(stage), k_rest.index(stage), W0, W1)
            mbarrier.wait(v_ready.index(before), ((i - 1) // STAGES) & 1)
            o0, a0 = _issue_values(p, v_smem.index(before), o0, W0)
            if W1 > 0:
                o1, a1 = _issue_values(p, v_rest.index(before), o1, W1)
                s = warpgroup_mma_wait(2, deps=[s])
            else:
                s = warpgroup_mma_wait(1, deps=[s])
            mbarrier.arrive(k_empty.index(stage), count=1)
            m_new = gl.maximum(m_i, gl.max(s, 1) * qk_scale)
            p = gl.exp2(s * qk_scale - m_new[:, None])
            alpha = gl.exp2(m_i - m_new)
            m_i = m_new
            l_i = l_i * alpha + gl.sum(p, 1)
            p = p.to(dtype)
            # over long ago: its branch keeps the compiler from moving the exponentials behind
            # the wait for o, where they would not overlap it
            mbarrier.wait(v_ready.index(before), ((i - 1) // STAGES) & 1)
            if W1 > 0:
                o0, o1, a0, a1, p = warpgroup_mma_wait(0, deps=[o0, o1, a0, a1, p])
                o1 = _rescale(o1, alpha)
            else:
                o0, a0, p = warpgroup_mma_wait(0, deps=[o0, a0, p])
            mbarrier.arrive(v_empty.index(before), count=1)
            o0 = _rescale(o0, alpha)

        # all scores are there: the next tile's queries may come
        mbarrier.arrive(q_empty.index(CONSUMER), count=1)
        stage = i % STAGES
        mbarrier.wait(v_ready.index(stage), (i // STAGES) & 1)
        o0, a0 = _issue_values(p, v_smem.index(stage), o0, W0)
        if W1 > 0:
            o1, a1 = _issue_values(p, v_rest.index(stage), o1, W1)
            o0, o1, a0, a1 = warpgroup_mma_wait(0, deps=[o0, o1, a0, a1])
        else:
            o0, a0 = warpgroup_mma_wait(0, deps=[o0, a0])
        mbarrier.arrive(v_empty.index(stage), count=1)
        i += 1
        j += 1

        r = 1.0 / l_i
        store_wait(0)
        o_smem.index(CONSUMER).reshape([ROWS, W0]).store(_rescale(o0, r).to(dtype))
        if W1 > 0:
            o_rest.index(CONSUMER).reshape([ROWS, W1]).store(_rescale(o1, r).to(dtype))
        fence_async_shared()
        copy_out(o_desc, [b, row, h, 0], o_smem.index(CONSUMER))
        if W1 > 0:
            copy_out(o_rest_desc, [b, row, h, W0], o_rest.index(CONSUMER))
    # the buffer must outlive the copy that reads it
    store_wait(0)
