"""The time of a kernel and of a model, predicted from its tiles and a GPU's figures. Pure: nothing runs.

A kernel is cut into tiles (for attention: programs) and its busiest multiprocessor gets
n = ceil(tiles / multiprocessors) of them. With R the matrix rate of one multiprocessor (the peak that
a large GEMM reaches, shared out), f the clock, s the bytes of a value:

    matrix   = 2 BM BN K / R                            K padded to BLOCK_K, divided by the splits
    feed     = (BM + BN) K s / (f min(64, L2 / active)) the same tile's operands, from the L2 cache
    epilogue = BM BN I / (f lanes)                      I fp32 instructions an element
    main     = max(matrix, feed) and aside = epilogue + the trip of a tile's first operands
    tiles    = n (main + aside)                         one block a multiprocessor
             = n max(main, aside) + min(main, aside)    two blocks, each beside the other's products
    memory   = bytes / copy bandwidth                   weights; what one pass touches if it exceeds L2
    time     = fill + max(tiles, memory)

Split-K adds the partial sums, written and read in fp32 through L2; the LayerNorm behind adds them up, in a launch
that there is anyway. Attention, for BM
queries on S key lanes and W head lanes (both as padded by its chunks and parts), takes

    program  = 4 BM S W / R + BM S / (f exps) + BM S I / (f lanes)

a sum, since without warp specialisation little overlaps: on an H100 in fp16 at head_dim 64 and 512 tokens
Triton's kernel is published at 340 TFLOP/s (Shah et al. 2024, FlashAttention-3, figure 5), and this sum gives
337. LayerNorm is its bytes at copy bandwidth, or at L2's where they fit. A model is the sum of its kernels and
of one launch gap each. Beside it the floor: FLOPs at the measured peak; for a kernel the larger of that and its
bytes at the measured copy bandwidth.

Left out: clocks that fall under load (but for what the measured peak already holds), bank conflicts,
uneven rounds of two blocks, weights of a small model that stay in L2, overlap of launches.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton

from benchmarks.hardware import DTYPES, Hardware
from vit_fast.kernels import attention, linear_norm, linear_tiles, patch_embed
from vit_fast.kernels.tuning import Gpu, cdiv
from vit_fast.workload import Model, Operation, operations

# estimates, all six; instructions as read from machine code for sm_90, at 128 x 256
FILL_US = 1.0  # first loads to arrive and last stores to land: two trips to memory
TILE_FILL_US = 0.5  # a tile's first operands from L2, and its last store out of shared memory
PORT_BYTES_PER_CLOCK = 64  # what one multiprocessor can take from L2
EPILOGUE_INSTRUCTIONS = {"plain": 8, "residual": 11, "activation": 15}
SOFTMAX_INSTRUCTIONS = 5  # scale and subtract, maximum, sum, cast; the exponential apart
MOST_BLOCKS = 2  # co-resident blocks whose overlap is counted

_TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Tile:
    block_m: int
    block_n: int
    block_k: int
    blocks_per_sm: int = 1
    splits: int = 1  # of K

    def count(self, M: int, N: int) -> int:
        return cdiv(M, self.block_m) * cdiv(N, self.block_n) * self.splits

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n}" + (f"/{self.splits}" if self.splits > 1 else "")


@dataclass(frozen=True)
class Program:
    """One program of attention: block_m queries on `keys` key lanes and `lanes` lanes of the head."""

    block_m: int
    keys: int
    lanes: int

    def __str__(self) -> str:
        return f"{self.block_m}x{self.keys}"


@dataclass(frozen=True)
class Kernel:
    """One launch of an operation, `count` times in a forward pass."""

    name: str
    count: int
    tile: str
    waves: float  # tiles / multiprocessors; 0 where the kernel is bound by bytes alone
    efficiency: float  # useful share of the matrix work that the rounds have room for
    bound: str  # what takes longest: matrix, feed (L2), epilogue, softmax, memory, fill
    time_us: float  # without the launch gap
    floor_us: float


def gpu_record(hw: Hardware) -> Gpu:
    """What the kernels' rules may know of this GPU."""
    return Gpu(hw.name, hw.arch, hw.sms, hw.smem_block_kb << 10)


def linear_tile(M: int, N: int, K: int, dtype: str, normed: bool, hw: Hardware) -> Tile:
    """linear's own rule, or linear_norm's where a LayerNorm is behind it. The one place that asks."""
    gpu, kind = gpu_record(hw), _TORCH[dtype]
    descriptors = gpu.bulk_copies and kind.itemsize == 2
    if normed:
        c = linear_norm.config_for(M, N, K, kind, descriptors, True, gpu)
    else:
        c = linear_tiles.launch_config(M, N, K, kind.itemsize, descriptors, gpu)
    return Tile(c.block_m, c.block_n, c.block_k, c.blocks_per_sm, c.splits)


def patch_tile(M: int, D: int, itemsize: int, hw: Hardware) -> Tile:
    """patch_embed's own rule; as many blocks a multiprocessor as its shared memory holds."""
    c = patch_embed.launch_config(M, D, itemsize, gpu_record(hw))
    m, n, k = c["BLOCK_M"], c["BLOCK_N"], c["BLOCK_K"]
    held = (hw.smem_sm_kb << 10) // (c["num_stages"] * (m + n) * k * itemsize)
    return Tile(m, n, k, min(MOST_BLOCKS, max(1, held)))


def attention_program(Nq: int, N: int, D: int, itemsize: int, hw: Hardware) -> Program:
    """attention's own rule, and what its chunks, tail and parts pad the work to. The one place that asks it."""
    c = attention.launch_config(Nq, N, D, itemsize, gpu_record(hw))
    lanes = sum(attention.head_parts(D, c.widest))
    if c.chunks[0]:
        return Program(c.block_m, sum(c.chunks), lanes)
    tail = N % c.block_n
    padded = max(16, triton.next_power_of_2(tail)) if tail else 0
    return Program(c.block_m, N - tail + padded, lanes)


def sm_flops_per_us(hw: Hardware, dtype: str) -> float:
    return hw.peak_tflops(dtype) * 1e6 / hw.sms


def copy_us(hw: Hardware, bytes_moved: float) -> float:
    """`bytes_moved` to and from memory."""
    return bytes_moved / (hw.copy_tb_s * 1e6)


def feed_us(hw: Hardware, bytes_each: float, active: int) -> float:
    """`bytes_each` from the L2 cache to each of `active` multiprocessors."""
    share = (hw.l2_bytes_per_clock or float("inf")) / active
    return bytes_each / (min(PORT_BYTES_PER_CLOCK, share) * hw.clock_mhz)


def l2_us(hw: Hardware, bytes_moved: float) -> float:
    """`bytes_moved` between the L2 cache and all multiprocessors together."""
    return feed_us(hw, bytes_moved / hw.sms, hw.sms)


def warm(hw: Hardware, bytes_touched: float) -> bool:
    """Whether what the kernel before has left, and this one touches, fits the L2 cache."""
    return bytes_touched <= hw.l2_mb * 2**20


def wave_efficiency(M: int, N: int, tile: Tile, sms: int) -> float:
    """Useful share of the room in the rounds: M N splits / (rounds x multiprocessors x tile area)."""
    room = cdiv(tile.count(M, N), sms) * sms * tile.block_m * tile.block_n
    return M * N * tile.splits / room


def gemm_us(
    hw: Hardware, dtype: str, M: int, N: int, K: int, tile: Tile, epilogue: str, memory_bytes: float
) -> tuple[float, str]:
    """(time, what bounds it) of [M, K] x [N, K] with memory_bytes through memory."""
    itemsize = DTYPES[dtype]
    count = tile.count(M, N)
    n, active = cdiv(count, hw.sms), min(count, hw.sms)
    k = cdiv(cdiv(K, tile.splits), tile.block_k) * tile.block_k
    area, edge = tile.block_m * tile.block_n, tile.block_m + tile.block_n
    parts = {
        "matrix": 2.0 * area * k / sm_flops_per_us(hw, dtype),
        "feed": feed_us(hw, edge * k * itemsize, active),
        "epilogue": area * EPILOGUE_INSTRUCTIONS[epilogue] / (hw.fp32_lanes * hw.clock_mhz),
    }
    main, aside = max(parts["matrix"], parts["feed"]), parts["epilogue"] + TILE_FILL_US
    if tile.blocks_per_sm == 1:
        busy = n * (main + aside)
    else:
        busy = n * max(main, aside) + min(main, aside)
    if tile.splits > 1:
        busy += l2_us(hw, 2 * 4.0 * M * N * tile.splits)
    return _longest(FILL_US, busy, copy_us(hw, memory_bytes), parts)


def attention_us(
    hw: Hardware, dtype: str, B: int, H: int, Nq: int, D: int, program: Program, memory_bytes: float
) -> tuple[float, str]:
    """(time, what bounds it) of B H heads of Nq queries with memory_bytes through memory."""
    count = cdiv(Nq, program.block_m) * B * H
    scores = program.block_m * program.keys
    instructions = SOFTMAX_INSTRUCTIONS / hw.fp32_lanes + 1 / hw.exps_per_sm_clock
    parts = {
        "matrix": 4.0 * scores * program.lanes / sm_flops_per_us(hw, dtype),
        "softmax": scores * instructions / hw.clock_mhz,
    }
    touched = 2 * (program.block_m + program.keys) * D * DTYPES[dtype]
    feed = feed_us(hw, touched, min(count, hw.sms))
    one = max(sum(parts.values()), feed)
    parts = {"feed": feed} if one == feed else parts
    return _longest(FILL_US, cdiv(count, hw.sms) * one, copy_us(hw, memory_bytes), parts)


def _longest(
    fill: float, busy: float, memory: float, parts: Mapping[str, float]
) -> tuple[float, str]:
    """(time, what bounds it): the fill, then the multiprocessors or memory, whichever takes longer."""
    rest = max(busy, memory)
    bound = "memory" if memory > busy else max(parts, key=parts.__getitem__)
    return fill + rest, "fill" if fill > rest else bound


def _kernel(o: Operation, hw: Hardware, dtype: str, tile, waves, efficiency, bound, time) -> Kernel:
    floor = max(o.flops / (hw.peak_tflops(dtype) * 1e6), copy_us(hw, o.bytes))
    return Kernel(o.name, o.count, str(tile), waves, efficiency, bound, time, floor)


def _product(o: Operation, hw: Hardware, dtype: str, M, N, tile: Tile, bound, time) -> Kernel:
    waves, useful = tile.count(M, N) / hw.sms, wave_efficiency(M, N, tile, hw.sms)
    return _kernel(o, hw, dtype, tile, waves, useful, bound, time)


def _linear(o: Operation, hw: Hardware, dtype: str) -> Kernel:
    M, N, K = o.shape["M"], o.shape["N"], o.shape["K"]
    # in a block every product with a residual has a LayerNorm behind it
    tile = linear_tile(M, N, K, dtype, o.shape["residual"], hw)
    kind = "activation" if o.shape["activation"] else "residual" if o.shape["residual"] else "plain"
    cold = N * K * DTYPES[dtype] if warm(hw, o.bytes) else o.bytes
    time, bound = gemm_us(hw, dtype, M, N, K, tile, kind, cold)
    return _product(o, hw, dtype, M, N, tile, bound, time)


def _patch_embed(o: Operation, hw: Hardware, dtype: str) -> Kernel:
    s = o.shape
    M, N, K = s["B"] * s["G"] ** 2, s["D"], s["C"] * s["P"] ** 2
    tile = patch_tile(M, N, DTYPES[dtype], hw)
    time, bound = gemm_us(hw, dtype, M, N, K, tile, "residual", o.bytes)  # pixels are cold
    return _product(o, hw, dtype, M, N, tile, bound, time)


def _attention(o: Operation, hw: Hardware, dtype: str) -> Kernel:
    B, H, Nq, N, D = (o.shape[i] for i in ("B", "H", "Nq", "N", "D"))
    program = attention_program(Nq, N, D, DTYPES[dtype], hw)
    memory = 0.0 if warm(hw, o.bytes) else o.bytes
    time, bound = attention_us(hw, dtype, B, H, Nq, D, program, memory)
    waves = cdiv(Nq, program.block_m) * B * H / hw.sms
    room = cdiv(Nq, program.block_m) * program.block_m * program.keys * program.lanes
    efficiency = Nq * N * D / room * waves / cdiv(cdiv(Nq, program.block_m) * B * H, hw.sms)
    return _kernel(o, hw, dtype, program, waves, efficiency, bound, time)


def _layer_norm(o: Operation, hw: Hardware, dtype: str) -> Kernel:
    moving = l2_us(hw, o.bytes) if warm(hw, o.bytes) else copy_us(hw, o.bytes)
    time, bound = _longest(FILL_US, 0.0, moving, {})
    return _kernel(o, hw, dtype, "rows", 0.0, 1.0, bound, time)


_PREDICT = {
    "linear": _linear,
    "patch_embed": _patch_embed,
    "attention": _attention,
    "layer_norm": _layer_norm,
}


@dataclass(frozen=True)
class Forecast:
    """A forward pass of `batch` images. Times in microseconds."""

    hw: Hardware
    model: Model
    batch: int
    dtype: str
    flops: float
    kernels: tuple[Kernel, ...]

    @property
    def launches(self) -> int:
        return sum(k.count for k in self.kernels)

    @property
    def gaps_us(self) -> float:
        return self.launches * self.hw.launch_gap_us

    @property
    def time_us(self) -> float:
        return sum(k.count * k.time_us for k in self.kernels) + self.gaps_us

    @property
    def floor_us(self) -> float:
        """Its FLOPs at the peak that a large GEMM reaches."""
        return self.flops / (self.hw.peak_tflops(self.dtype) * 1e6)

    @property
    def kernels_floor_us(self) -> float:
        """Each kernel at the larger of its FLOPs at the peak and its bytes at copy bandwidth."""
        return sum(k.count * k.floor_us for k in self.kernels)

    @property
    def images_per_s(self) -> float:
        return self.batch / self.time_us * 1e6

    def share(self, kernel: Kernel) -> float:
        """Of the time, launch gaps included."""
        return kernel.count * (kernel.time_us + self.hw.launch_gap_us) / self.time_us


def forecast(hw: Hardware, model: Model, batch: int, dtype: str = "bf16") -> Forecast:
    """Predicts a forward pass that returns all tokens. ValueError for a batch below 1 or an unknown dtype."""
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected at least 1")
    hw.peak_tflops(dtype)
    ops = tuple(operations(model, batch, DTYPES[dtype]))
    kernels = tuple(_PREDICT[o.op](o, hw, dtype) for o in ops)
    return Forecast(hw, model, batch, dtype, sum(o.flops * o.count for o in ops), kernels)
