"""What the Gluon matrix products share: the copy warp, the main loop and the epilogue.

Shared memory is a ring of STAGES stages. Load i (counted over all tiles of a program, one load a K
step) goes to stage i % STAGES and is that stage's use number i // STAGES. Two barriers a stage:

ready[s]  completes a phase when the copy warp has announced a load's bytes and they have arrived;
empty[s]  completes a phase when every consumer that reads the stage has released it.

Phase p of a barrier is its p-th completion, counted from 0. `wait(barrier, parity)` cannot name p,
only p & 1: it returns if the phase that is running has the other parity. So it means "phase p is
complete" only while the barrier has completed p or p + 1 phases, and each wait here rests on that:

- copy warp, load i, use u = i // STAGES: waits for phase u - 1 of empty (for u = 0 the parity of a
  phase -1, which a fresh barrier counts as complete). empty has completed u - 1 phases or u: use
  u - 1 was filled by this very warp, and use u cannot be released before it is filled.
- a consumer, load i: waits for phase u of ready. At most u + 1 phases: use u + 1 needs this
  consumer's release of use u. At least u: every load before i must have been seen complete. That
  holds where a consumer takes every load in order (gemm_cooperative); where consumers alternate,
  it is what the turn barriers are for (gemm_pingpong).

One thread arrives for a warpgroup. Its other warps cannot still be waiting for the phase that it
ends: a wgmma on that stage lies between, which takes all four warps.

A stage is released when the product that read it is complete. One product is kept in flight, so
load i - 1 is released after product i has been issued, the last of a tile when the tile drains:
hence STAGES >= 2 (with one stage product i would wait for a load that waits for its release).

The epilogue's staging buffer is written by threads (generic proxy) and read by the bulk store
(async proxy): `fence_async_shared` by the writers makes their stores visible to the copy engine,
and `store_wait(0)` before the next use of the buffer says that the engine has read it.
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
def make_barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """COUNT barriers; ARRIVALS arrivals complete a phase."""
    bars = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(bars.index(i), count=ARRIVALS)
    return bars


@gluon.jit
def copy_tiles(
    x_desc,  # [M, K] in boxes [BLOCK_M, BLOCK_K]
    w_desc,  # [N, K] in boxes [BLOCK_N, BLOCK_K]
    ring,  # x_smem [STAGES * PARTS, BLOCK_M, BLOCK_K], w_smem [STAGES, BLOCK_N, BLOCK_K], ready, empty
    walk,  # tiles, tiles_n, steps
    PARTS: gl.constexpr,  # row parts of a tile, BLOCK_M rows each
    STAGES: gl.constexpr,
):
    """The copy warp: all K steps of all of this program's tiles, in order, as stages come free."""
    x_smem, w_smem, ready, empty = ring
    tiles, tiles_n, steps = walk
    BLOCK_M: gl.constexpr = x_smem.shape[1]
    BLOCK_N: gl.constexpr = w_smem.shape[1]
    BLOCK_K: gl.constexpr = w_smem.shape[2]
    i = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row = (tile // tiles_n) * (PARTS * BLOCK_M)
        col = (tile % tiles_n) * BLOCK_N
        for step in range(steps):
            stage = i % STAGES
            mbarrier.wait(empty.index(stage), ((i // STAGES) & 1) ^ 1)
            # announced in full: what a box has past M, N or K arrives as zeros and counts
            full = ready.index(stage)
            mbarrier.expect(full, (PARTS * BLOCK_M + BLOCK_N) * BLOCK_K * 2)
            k = step * BLOCK_K
            for part in gl.static_range(PARTS):
                rows = x_smem.index(stage * PARTS + part)
                copy_in(x_desc, [row + part * BLOCK_M, k], full, rows)
            copy_in(w_desc, [col, k], full, w_smem.index(stage))
            i += 1


@gluon.jit
def multiply(
    x_smem,
    w_smem,
    ready,
    empty,
    i,  # this tile's first load
    steps,
    PART: gl.constexpr,
    PARTS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """[BLOCK_M, BLOCK_N] fp32, its last product still in flight and its last stage not released."""
    BLOCK_M: gl.constexpr = x_smem.shape[1]
    BLOCK_N: gl.constexpr = w_smem.shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    acc = gl.zeros((BLOCK_M, BLOCK_N), gl.float32, layout)
    for step in range(steps):
        stage = i % STAGES
        mbarrier.wait(ready.index(stage), (i // STAGES) & 1)
        x = x_smem.index(stage * PARTS + PART)
        acc = warpgroup_mma(x, w_smem.index(stage).permute((1, 0)), acc, is_async=True)
        acc = warpgroup_mma_wait(1, deps=[acc])
        mbarrier.arrive(empty.index((i + STAGES - 1) % STAGES), count=1, pred=step > 0)
        i += 1
    return acc


@gluon.jit
def drain(acc, empty, last, STAGES: gl.constexpr):
    """Waits for the product in flight and releases the stage of load `last`."""
    acc = warpgroup_mma_wait(0, deps=[acc])
    mbarrier.arrive(empty.index(last % STAGES), count=1)
    return acc


@gluon.jit
def fetch_residual(residual_desc, staging, arrived, row, col):
    """Starts the copy of a residual tile into the buffer that its result will leave from."""
    WIDTH: gl.constexpr = staging.shape[2]
    store_wait(0)  # the last tile has left
    mbarrier.expect(arrived, 2 * staging.shape[1] * WIDTH * 2)
    for s in gl.static_range(2):
        coords = [row, col + s * WIDTH]
        copy_in(residual_desc, coords, arrived, staging.index(s))


@gluon.jit
def store_tile(
    acc,
    y_desc,  # [M, N] in boxes [BLOCK_M, BLOCK_N / 2]
    staging,  # [2, BLOCK_M, BLOCK_N / 2]
    bias_ptr,  # [N] or None
    scale_ptr,  # [N] or None
    row,
    col,
    N,
    ACTIVATION: gl.constexpr,
    RESIDUAL: gl.constexpr,  # staging holds the residual
):
    """The epilogue in two column slices: the first leaves while the second is computed."""
    BLOCK_M: gl.constexpr = staging.shape[1]
    WIDTH: gl.constexpr = staging.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    halves = gl.permute(gl.reshape(acc, (BLOCK_M, 2, WIDTH)), (0, 2, 1))
    left, right = gl.split(halves)
    if not RESIDUAL:
        store_wait(0)  # the last tile has left the buffer
    for s in gl.static_range(2):
        y = gl.convert_layout(left if s == 0 else right, layout)
        offs_n = col + s * WIDTH + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, layout))
        if bias_ptr is not None:
            y += gl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(gl.float32)[None, :]
        y = ACTIVATION(y)
        if scale_ptr is not None:
            y *= gl.load(scale_ptr + offs_n, mask=offs_n < N, other=0.0).to(gl.float32)[None, :]
        box = staging.index(s)
        if RESIDUAL:
            y += box.load(layout).to(gl.float32)
        # each thread writes where it read
        box.store(y.to(y_desc.dtype))
        fence_async_shared()
        copy_out(y_desc, [row, col + s * WIDTH], box)
