"""y = residual + scale * act(x W^T + b) on Hopper: two warpgroups share each tile.

2 M N K operations; x, W and the residual are read once from memory, y is written once, 2 bytes a
value. A tile is 256 x 128 (or 128 x 256), half of its rows to each consumer warpgroup, K in steps of
64: 48 KB of shared memory for a step's 2 * 256 * 128 * 64 operations, where two tiles of 128 x 128
(gemm_pingpong) need 64 KB. The price: both consumers are in their epilogue at the same time, and
the matrix unit idles; only the copies for the next tile go on. Made for long K.

A program is one copy warp and two consumers of 4 warps. It owns every gridDim-th tile; load i = n
KT + step belongs to its n-th tile, and both consumers take every load in order, each its own rows of x.
Barriers (see gemm_parts.py):

- ready[s], one arrival and the bytes of all three boxes. Both consumers wait for each phase; before
  phase u a consumer has seen all phases below it, and phase u + 1 needs its own release of use u: a
  parity names the phase.
- empty[s], two arrivals: each consumer when its product on the stage is complete. The slower one
  decides.
- arrived[c]: the residual of consumer c's rows, started by itself when its last tile has left the
  buffer, awaited (phase n) before its epilogue.

No deadlock. Take the first load i that some consumer has not consumed. Load i - STAGES is consumed
by both and, as STAGES >= 2, released by both: product i - STAGES + 1 was issued, or the tile
drains. So load i comes, and no consumer waits for the other but through the ring.
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

NAME = "gemm_cooperative"


@dataclass(frozen=True)
class Config:
    block_m: int  # rows of a consumer, half of a tile's
    block_n: int
    block_k: int
    stages: int

    def __str__(self) -> str:
        return f"{2 * self.block_m}x{self.block_n}x{self.block_k}, {self.stages} stages"


CONFIGS = (Config(128, 128, 64, 3), Config(64, 256, 64, 3))


@gluon.jit
def _consume(
    outputs,  # y_desc, residual_desc, bias_ptr, scale_ptr
    ring,  # x_smem, w_smem, ready, empty
    walk,  # tiles, tiles_n, steps
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
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row = (tile // tiles_n) * (2 * BLOCK_M) + CONSUMER * BLOCK_M
        col = (tile % tiles_n) * BLOCK_N
        if RESIDUAL:
            fetch_residual(residual_desc, staging, arrived.index(CONSUMER), row, col)
        i = n * steps
        acc = multiply(x_smem, w_smem, ready, empty, i, steps, CONSUMER, 2, STAGES)
        acc = drain(acc, empty, i + steps - 1, STAGES)
        if RESIDUAL:
            mbarrier.wait(arrived.index(CONSUMER), n & 1)
        store_tile(acc, y_desc, staging, bias_ptr, scale_ptr, row, col, N, ACTIVATION, RESIDUAL)
        n += 1
    # the buffer must outlive the copy that reads it
    store_wait(0)


@gluon.jit
def _cooperative_kernel(
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
    x_smem = gl.allocate_shared_memory(dtype, [2 * STAGES, BLOCK_M, BLOCK_K], x_desc.layout)
    w_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, BLOCK_K], w_desc.layout)
    staging0 = gl.allocate_shared_memory(dtype, [2, BLOCK_M, BLOCK_N // 2], y_desc.layout)
    staging1 = gl.allocate_shared_memory(dtype, [2, BLOCK_M, BLOCK_N // 2], y_desc.layout)
    ready = make_barriers(STAGES, 1)
    empty = make_barriers(STAGES, 2)
    arrived = make_barriers(2, 1)
    # the copy engine must see the barriers as they were made
    fence_async_shared()
    tiles_n = gl.cdiv(N, BLOCK_N)
    tiles = gl.cdiv(M, 2 * BLOCK_M) * tiles_n
    steps = gl.cdiv(K, BLOCK_K)
    outputs = (y_desc, residual_desc, bias_ptr, scale_ptr)
    ring = (x_smem, w_smem, ready, empty)
    walk = (tiles, tiles_n, steps)
    gl.warp_specialize(
        [
            (_consume, (outputs, ring, walk, arrived, staging0, N, 0, ACTIVATION, STAGES)),
            (_consume, (outputs, ring, walk, arrived, staging1, N, 1, ACTIVATION, STAGES)),
            (copy_tiles, (x_desc, w_desc, ring, walk, 2, STAGES)),
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
        tiles = cdiv(g.M, 2 * c.block_m) * cdiv(g.N, c.block_n)
        with torch.cuda.device_of(x):
            _cooperative_kernel[(min(tiles, g.gpu.sms),)](
                *g.descriptors, g.bias, g.scale, g.M, g.N, g.K, g.activation,
                c.block_m, c.block_n, c.block_k, c.stages, num_warps=4, **COMPILE_OPTIONS,
            )  # fmt: skip
    return g.y
