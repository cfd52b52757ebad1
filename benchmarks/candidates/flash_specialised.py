"""Attention on Hopper with copies, matrix products and exponentials in different warps.

softmax(q k^T * scale) v for every head, exact, scores never in memory: 4 B H Nq N D operations;
q, k, v and the result cross memory once, 2 bytes a value (a head's k and v meet its other query
tiles in the L2 cache). At D = 64 a score costs 256 operations on the matrix unit (4096 a clock and
multiprocessor: 1/16 clock) and one exponential (16 a clock: 1/16 clock as well), so a kernel that
does one after the other takes twice the time that either needs.

A program is one copy warp and CONSUMERS warpgroups of 64 query rows each, over the same keys, block
by block with a running maximum (Dao et al. 2022, algorithm 1). With S(i) the scores of block i,
a consumer's step is (as in Shah et al. 2024, algorithm 2)

    issue S(i) = q k(i)^T;  issue o += p(i-1) v(i-1);  wait for S(i);  softmax -> p(i);  wait for o

so the products p(i-1) v(i-1) run under the exponentials of block i, as do the other consumers' products.
The last block of keys, which may be partial, comes first: its mask of -inf is then outside the
loop, and every row has seen a valid key before the first correction. exp2 with the scale folded:
t = s * scale * log2 e is one FMA a score. A head of D lanes is in one or two parts that are powers
of two (72 = 64 + 16, 8 of them zeros); the descriptors clip what lies past D, Nq and N: zeros on
the way in, nothing on the way out.

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

from dataclasses import dataclass

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from vit_fast.kernels.launch import COMPILE_OPTIONS
from vit_fast.kernels.operators import check_tensor, refuse
from vit_fast.kernels.tuning import Gpu, cdiv

from .copies import copy_in, copy_out, store_wait
from .gemm_launch import check_bulk, check_gpu, describe
from .gemm_parts import make_barriers

_ROWS = 64  # query rows of a consumer
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Config:
    consumers: int
    block_n: int  # keys a block
    stages: int
    registers: int  # a consumer's; the copy warp's group has 24

    def __str__(self) -> str:
        return f"{self.consumers} x 64 queries, {self.block_n} keys, {self.stages} stages"


# the first is what `run` takes
_CONFIGS = {
    (64, 0): (Config(2, 128, 4, 240), Config(3, 64, 4, 160)),
    (64, 16): (Config(2, 128, 3, 240), Config(3, 64, 4, 160)),
    (64, 32): (Config(2, 128, 3, 240), Config(2, 64, 4, 240)),
    (128, 0): (Config(2, 128, 2, 240), Config(2, 64, 4, 240)),
}
NAME = "flash_specialised"
ALL_CONFIGS = tuple(dict.fromkeys(c for choice in _CONFIGS.values() for c in choice))


def head_parts(D: int) -> tuple[int, int] | None:
    """The widths that hold D lanes: 72 -> (64, 16); None where this kernel has none."""
    for parts in _CONFIGS:
        if sum(parts) - 16 < D <= sum(parts) and D % 8 == 0:
            return parts
    return None


def configs(D: int) -> tuple[Config, ...]:
    return _CONFIGS.get(head_parts(D), ())


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
def _copy_blocks(
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
def _consume(
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


@gluon.jit
def _flash_kernel(
    q_desc,  # [B, Nq, H, D] in boxes [1, ROWS, 1, W0]
    k_desc,  # [B, N, H, D] in boxes [1, BLOCK_N, 1, W0]
    v_desc,  # the same
    o_desc,  # as q_desc
    q_rest_desc,  # the same four in boxes of W1 lanes; None if W1 is 0
    k_rest_desc,
    v_rest_desc,
    o_rest_desc,
    B,
    H,
    Nq,
    N,
    qk_scale,
    CONSUMERS: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    W0: gl.constexpr,
    W1: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    dtype: gl.constexpr = q_desc.dtype
    q_smem = gl.allocate_shared_memory(dtype, [CONSUMERS, 1, ROWS, 1, W0], q_desc.layout)
    o_smem = gl.allocate_shared_memory(dtype, [CONSUMERS, 1, ROWS, 1, W0], o_desc.layout)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, 1, BLOCK_N, 1, W0], k_desc.layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, 1, BLOCK_N, 1, W0], v_desc.layout)
    # a head in one part has no rest: these names then stand for the same buffers and are not used
    q_rest = q_smem
    o_rest = o_smem
    k_rest = k_smem
    v_rest = v_smem
    if W1 > 0:
        q_rest = gl.allocate_shared_memory(dtype, [CONSUMERS, 1, ROWS, 1, W1], q_rest_desc.layout)
        o_rest = gl.allocate_shared_memory(dtype, [CONSUMERS, 1, ROWS, 1, W1], o_rest_desc.layout)
        k_rest = gl.allocate_shared_memory(dtype, [STAGES, 1, BLOCK_N, 1, W1], k_rest_desc.layout)
        v_rest = gl.allocate_shared_memory(dtype, [STAGES, 1, BLOCK_N, 1, W1], v_rest_desc.layout)
    q_ready = make_barriers(CONSUMERS, 1)
    q_empty = make_barriers(CONSUMERS, 1)
    k_ready = make_barriers(STAGES, 1)
    k_empty = make_barriers(STAGES, CONSUMERS)
    v_ready = make_barriers(STAGES, 1)
    v_empty = make_barriers(STAGES, CONSUMERS)
    # the copy engine must see the barriers as they were made
    fence_async_shared()
    tiles_m = gl.cdiv(Nq, CONSUMERS * ROWS)
    walk = (B * H * tiles_m, tiles_m, gl.cdiv(N, BLOCK_N))
    ins = (q_desc, k_desc, v_desc, q_rest_desc, k_rest_desc, v_rest_desc)
    outs = (o_desc, o_rest_desc)
    loaded = (q_smem, k_smem, v_smem, q_rest, k_rest, v_rest)
    smems = (q_smem, k_smem, v_smem, q_rest, k_rest, v_rest, o_smem, o_rest)
    bars = (q_ready, q_empty, k_ready, k_empty, v_ready, v_empty)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consume, (outs, smems, bars, walk, H, N, qk_scale, 0, 2, W0, W1, STAGES)),
                (_consume, (outs, smems, bars, walk, H, N, qk_scale, 1, 2, W0, W1, STAGES)),
                (_copy_blocks, (ins, loaded, bars, walk, H, 2, W0, W1, STAGES)),
            ],
            [4, 1],
            [REGISTERS, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (outs, smems, bars, walk, H, N, qk_scale, 0, 3, W0, W1, STAGES)),
                (_consume, (outs, smems, bars, walk, H, N, qk_scale, 1, 3, W0, W1, STAGES)),
                (_consume, (outs, smems, bars, walk, H, N, qk_scale, 2, 3, W0, W1, STAGES)),
                (_copy_blocks, (ins, loaded, bars, walk, H, 3, W0, W1, STAGES)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, 24],
        )


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    gpu: Gpu | None = None,
    config: Config | None = None,
) -> Tensor:
    """q [B, Nq, H, D], k and v [B, N, H, D], strides of their own -> [B, Nq, H * D] in q.dtype.

    ValueError says what this kernel cannot take: shapes, dtypes other than bf16 and fp16, a head of
    other widths than `head_parts` knows, strides that are no multiples of 16 bytes, no sm_90.
    """
    op = "candidate attention"
    B, Nq, H, D = q.shape if q.dim() == 4 else (0, 0, 0, 0)
    N = k.shape[1] if k.dim() == 4 else 0
    if q.dim() != 4 or N == 0 or not k.shape == v.shape == (B, N, H, D):
        refuse(
            op,
            f"q is {tuple(q.shape)}, k is {tuple(k.shape)}, v is {tuple(v.shape)}:"
            " expected [B, Nq, H, D] and twice [B, N, H, D]",
        )
    parts = head_parts(D)
    if parts is None:
        refuse(op, f"head_dim is {D}, supported are 56, 64, 72, 80, 88, 96, 120 and 128")
    if not scale > 0:
        refuse(op, f"scale is {scale}, expected a positive number")
    gpu = check_gpu(op, q.device, gpu)
    check_tensor(op, "k", k, k.shape, q.device, q.dtype)
    check_tensor(op, "v", v, v.shape, q.device, q.dtype)
    o = torch.empty((B, Nq, H * D), dtype=q.dtype, device=q.device)
    if o.numel() == 0:
        return o
    for name, t in (("q", q), ("k", k), ("v", v)):
        check_bulk(op, name, t)
    c = config or configs(D)[0]
    boxes = zip((q, k, v, o.view(q.shape)), (_ROWS, c.block_n, c.block_n, _ROWS), strict=True)
    boxes = list(boxes)
    W0, W1 = parts
    heads = [describe(t, [1, n, 1, W0]) for t, n in boxes]
    rests = [describe(t, [1, n, 1, W1]) if W1 else None for t, n in boxes]
    tiles = B * H * cdiv(Nq, c.consumers * _ROWS)
    with torch.cuda.device_of(q):
        _flash_kernel[(min(tiles, gpu.sms),)](
            *heads, *rests, B, H, Nq, N, scale * _LOG2_E,
            c.consumers, _ROWS, c.block_n, W0, W1, c.stages, c.registers,
            num_warps=4, **COMPILE_OPTIONS,
        )  # fmt: skip
    return o
