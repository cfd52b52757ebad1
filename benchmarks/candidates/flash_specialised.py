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

The barriers and why they cannot deadlock are in flash_parts.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from vit_fast.kernels.launch import COMPILE_OPTIONS
from vit_fast.kernels.operators import check_tensor, refuse
from vit_fast.kernels.tuning import Gpu, cdiv

from .flash_parts import consume, copy_blocks
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
                (consume, (outs, smems, bars, walk, H, N, qk_scale, 0, 2, W0, W1, STAGES)),
                (consume, (outs, smems, bars, walk, H, N, qk_scale, 1, 2, W0, W1, STAGES)),
                (copy_blocks, (ins, loaded, bars, walk, H, 2, W0, W1, STAGES)),
            ],
            [4, 1],
            [REGISTERS, 24],
        )
    else:
        gl.warp_specialize(
            [
                (consume, (outs, smems, bars, walk, H, N, qk_scale, 0, 3, W0, W1, STAGES)),
                (consume, (outs, smems, bars, walk, H, N, qk_scale, 1, 3, W0, W1, STAGES)),
                (consume, (outs, smems, bars, walk, H, N, qk_scale, 2, 3, W0, W1, STAGES)),
                (copy_blocks, (ins, loaded, bars, walk, H, 3, W0, W1, STAGES)),
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
    boxes = list(zip((q, k, v, o.view(q.shape)), (_ROWS, c.block_n, c.block_n, _ROWS)))
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
