"""y = residual + scale * act(x W^T + b) on Hopper: two warpgroups take turns at the matrix unit.

2 M N K operations; x, W and the residual are read once from memory, y is written once, 2 bytes a
value. A tile is 128 x 128, K in steps of 64: a step is 2 * 128 * 128 * 64 operations on 32 KB of
shared memory. At K = 768 the main loop of such a tile takes about 6,100 clocks of the matrix unit
(2048 FMAs a clock) and its epilogue about a third of that in instruction issue (both estimates).
Here the epilogue is free as long as it is the shorter of the two: while one consumer warpgroup
stores its tile, the other multiplies.

A program is one copy warp and two consumers of 4 warps (and 3 idle warps, for registers are handed
out by four warps: 240 a thread to the consumers, 24 to the copy warp). It owns every
gridDim-th tile: its tile j = 2 n + c is the n-th of consumer c, and the copy warp loads all K steps
of tile 0, 1, 2, ... into one ring of stages. The ring's barriers and the proxies are explained in
gemm_parts.py; two more kinds are needed here.

turn[c], one arrival: the other consumer, when it has seen all loads of its tile and issued its last
product. Consumer c waits for it before its first load of tile j, that is, before consumer 0's tile
n > 0 for phase n - 1 and before consumer 1's tile n for phase n.
- Why: a wait names a parity only. Without the turn, consumer 1 would ask for use u = KT // STAGES
  of a stage while the ring is in its first round: if u is even, the completion of use 0 passes for
  it, and it multiplies the other consumer's data. With it, every load before its own is complete.
- Parity is enough for turn itself: consumer c's tile n ends with the one arrival that lets the
  other's next tile begin, so neither barrier is ever more than one phase ahead of its waiter.
- No tile: tiles are handed out in order, so a consumer without a tile n has none after it, nobody
  waits for its arrivals, and the other's last arrival is left unread.

arrived[c], one arrival and the bytes of a residual tile: started by consumer c itself before its
turn, into its own staging buffer, and awaited (phase n) before its epilogue.

No deadlock. Take the first load that is not yet consumed, i. Its consumer lacks no turn: all loads
of the tile before are consumed, so that tile's consumer has arrived. Its stage is free or filled:
load i - STAGES is consumed and, as STAGES >= 2, either product i - STAGES + 1 was issued or its
tile drains, and both release it without waiting for anybody. The epilogue waits only for copies.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from vit_fast.kernels.launch import COMPILE_OPTIONS
from vit_fast.kernels.tuning import Gpu, cdiv

from .copies import store_wait
from .gemm_launch import prepare
from .gemm_parts import (
    copy_tiles,
    drain,
    fetch_residual,
    make_barriers,
    multiply,
    store_tile,
)

NAME = "gemm_pingpong"


@dataclass(frozen=True)
class Config:
    block_m: int = 128
    block_n: int = 128
    block_k: int = 64
    stages: int = 5

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n}x{self.block_k}, {self.stages} stages"


CONFIGS = (Config(), Config(block_k=128, stages=2), Config(stages=4))


@gluon.jit
def _consume(
    outputs,  # y_desc, residual_desc, bias_ptr, scale_ptr
    ring,  # x_smem, w_smem, ready, empty
    walk,  # tiles, tiles_n, steps
    turn,
    arrived,
    staging,  # this consumer's
    N,
    CONSUMER: gl.constexpr,
    ACTIVATION: gl.constexpr,
    STAGES: gl.constexpr,
):
    y_desc, residual_desc, bias_ptr, scale_ptr = outputs
    x_smem, w_smem, ready, empty = ring
    tiles, tiles_n, steps = walk
    BLOCK_M: gl.constexpr = x_smem.shape[1]
    BLOCK_N: gl.constexpr = w_smem.shape[1]
    RESIDUAL: gl.constexpr = residual_desc is not None
    n = 0
    first = gl.program_id(0) + CONSUMER * gl.num_programs(0)
    for tile in range(first, tiles, 2 * gl.num_programs(0)):
        row = (tile // tiles_n) * BLOCK_M
        col = (tile % tiles_n) * BLOCK_N
        if RESIDUAL:
            fetch_residual(residual_desc, staging, arrived.index(CONSUMER), row, col)
        i = (2 * n + CONSUMER) * steps
        # consumer 0 waits for phase n - 1, consumer 1 for phase n
        mbarrier.wait(turn.index(CONSUMER), (n + 1 - CONSUMER) & 1)
        acc = multiply(x_smem, w_smem, ready, empty, i, steps, 0, 1, STAGES)
        mbarrier.arrive(turn.index(1 - CONSUMER), count=1)
        acc = drain(acc, empty, i + steps - 1, STAGES)
        if RESIDUAL:
            mbarrier.wait(arrived.index(CONSUMER), n & 1)
        store_tile(acc, y_desc, staging, bias_ptr, scale_ptr, row, col, N, ACTIVATION, RESIDUAL)
        n += 1
    # the buffer must outlive the copy that reads it
    store_wait(0)


@gluon.jit
def _pingpong_kernel(
    x_desc,  # [M, K] in boxes [BLOCK_M, BLOCK_K]
    w_desc,  # [N, K] in boxes [BLOCK_N, BLOCK_K]
    y_desc,  # [M, N] in boxes [BLOCK_M, BLOCK_N / 2]
    residual_desc,  # the same, or None
    bias_ptr,  # [N] or None
    scale_ptr,  # [N] or None
    M,
    N,
    K,
    ACTIVATION: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr,
):
    dtype: gl.constexpr = x_desc.dtype
    x_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_M, BLOCK_K], x_desc.layout)
    w_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, BLOCK_K], w_desc.layout)
    staging0 = gl.allocate_shared_memory(dtype, [2, BLOCK_M, BLOCK_N // 2], y_desc.layout)
    staging1 = gl.allocate_shared_memory(dtype, [2, BLOCK_M, BLOCK_N // 2], y_desc.layout)
    ready = make_barriers(STAGES, 1)
    empty = make_barriers(STAGES, 1)
    turn = make_barriers(2, 1)
    arrived = make_barriers(2, 1)
    # the copy engine must see the barriers as they were made
    fence_async_shared()
    tiles_n = gl.cdiv(N, BLOCK_N)
    tiles = gl.cdiv(M, BLOCK_M) * tiles_n
    steps = gl.cdiv(K, BLOCK_K)
    outputs = (y_desc, residual_desc, bias_ptr, scale_ptr)
    ring = (x_smem, w_smem, ready, empty)
    walk = (tiles, tiles_n, steps)
    gl.warp_specialize(
        [
            (_consume, (outputs, ring, walk, turn, arrived, staging0, N, 0, ACTIVATION, STAGES)),
            (_consume, (outputs, ring, walk, turn, arrived, staging1, N, 1, ACTIVATION, STAGES)),
            (copy_tiles, (x_desc, w_desc, ring, walk, 1, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    gpu: Gpu | None = None,
    config: Config = CONFIGS[0],
) -> Tensor:
    """x [..., K], weight [N, K], bias [N], scale [N], residual [..., N] -> [..., N] in x.dtype.

    ValueError says what this kernel cannot take: see gemm_launch.prepare.
    """
    c = config
    g = prepare(
        x, weight, bias, activation, scale, residual, gpu, (c.block_m, c.block_n, c.block_k)
    )
    if g.M and g.N:
        tiles = cdiv(g.M, c.block_m) * cdiv(g.N, c.block_n)
        with torch.cuda.device_of(x):
            _pingpong_kernel[(min(tiles, g.gpu.sms),)](
                *g.descriptors, g.bias, g.scale, g.M, g.N, g.K, g.activation,
                c.block_m, c.block_n, c.block_k, c.stages, num_warps=4, **COMPILE_OPTIONS,
            )  # fmt: skip
    return g.y
