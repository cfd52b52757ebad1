"""The time of a kernel, from its tiles and a GPU's figures. Pure: nothing runs.

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
that there is anyway. Attention, for BM queries on S key lanes and W head lanes (both as padded by its chunks and
parts), takes

    program  = 4 BM S W / R + BM S / (f exps) + BM S I / (f lanes)

a sum, since without warp specialisation little overlaps: on an H100 in fp16 at head_dim 64 and 512 tokens
Triton's kernel is published at 340 TFLOP/s (Shah et al. 2024, FlashAttention-3, figure 5), and this sum gives
337. LayerNorm is its bytes at copy bandwidth, or at L2's where they fit.

Left out: clocks that fall under load (but for what the measured peak already holds), bank conflicts,
uneven rounds of two blocks, weights of a small model that stay in L2.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.hardware import DTYPES, Hardware
from vit_fast.kernels.tuning import cdiv

# estimates, all six; instructions as read from machine code for sm_90, at 128 x 256
FILL_US = 1.0  # first loads to arrive and last stores to land: two trips to memory
TILE_FILL_US = 0.5  # a tile's first operands from L2, and its last store out of shared memory
PORT_BYTES_PER_CLOCK = 64  # what one multiprocessor can take from L2
EPILOGUE_INSTRUCTIONS = {"plain": 8, "residual": 11, "activation": 15}
SOFTMAX_INSTRUCTIONS = 5  # scale and subtract, maximum, sum, cast; the exponential apart
MOST_BLOCKS = 2  # co-resident blocks whose overlap is counted


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
    return longest(FILL_US, busy, copy_us(hw, memory_bytes), parts)


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
    return longest(FILL_US, cdiv(count, hw.sms) * one, copy_us(hw, memory_bytes), parts)


def longest(
    fill: float, busy: float, memory: float, parts: Mapping[str, float]
) -> tuple[float, str]:
    """(time, what bounds it): the fill, then the multiprocessors or memory, whichever takes longer."""
    rest = max(busy, memory)
    bound = "memory" if memory > busy else max(parts, key=parts.__getitem__)
    return fill + rest, "fill" if fill > rest else bound
