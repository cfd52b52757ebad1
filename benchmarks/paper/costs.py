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
that there is anyway. A product with LayerNorm folded in reads its rows' statistics beside the epilogue. cuBLAS is
taken to be as fast as the rule's tile without an epilogue, which is then a launch of its own and a pass over the
result. Attention, for BM queries on S key lanes and W head lanes (both as padded by its chunks and parts), takes

    program  = max(4 BM S W / R + BM S / (f exps) + BM S I / (f lanes), (2 BM + 2 S) D s / (f min(64, L2 / active)))

a sum, since without warp specialisation little overlaps: on an H100 in fp16 at head_dim 64 and 512 tokens
Triton's kernel is published at 340 TFLOP/s (Shah et al. 2024, FlashAttention-3, figure 5), and this sum gives
337. The last tile of a head may have fewer rows: less of the sum, and nearly the same bytes. Such tiles go where
the last round of whole ones leaves multiprocessors idle, one to each, and then into rounds of their own.
LayerNorm is its bytes at copy bandwidth, or at L2's where they fit.

A dependent launch (kernels/dependent.py) leaves a share of the launch gap, and takes DEPENDENT_FETCH_US from the
fill of a product that asks for its weights before it waits.

Left out: clocks that fall under load (but for what the measured peak already holds), bank conflicts,
uneven rounds of two blocks, weights of a small model that stay in L2, and that a product of 16 rows runs
on the slower warp instructions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vit_fast.kernels.tuning import cdiv

from ..hardware import DTYPES, Hardware

# estimates, all of them; instructions as read from machine code for sm_90, at 128 x 256, but for "folded" and
# "statistics", which are counted in the source of kernels/folding.py: 3 and 6 an element more
FILL_US = 1.0  # first loads to arrive and last stores to land: two trips to memory
TILE_FILL_US = 0.5  # a tile's first operands from L2, and its last store out of shared memory
PORT_BYTES_PER_CLOCK = 64  # what one multiprocessor can take from L2
EPILOGUE_INSTRUCTIONS = {
    "plain": 8,
    "residual": 11,
    "activation": 15,
    "gated": 12,  # the mean of one half's activation and the other's plain sum, and half a store: counted, not read
    "folded": 11,  # LayerNorm folded into qkv
    "folded activation": 18,  # into fc1
    "statistics": 17,  # residual, and what the next folded product needs
}
SOFTMAX_INSTRUCTIONS = 5  # scale and subtract, maximum, sum, cast; the exponential apart
MOST_BLOCKS = 2  # co-resident blocks whose overlap is counted
DEPENDENT_GAP = 0.5  # share of the launch gap that a dependent launch leaves: the release, not the start of blocks
DEPENDENT_FETCH_US = (
    0.3  # from memory, about 800 clocks, to the L2 cache, about 270: the first weights are there
)


@dataclass(frozen=True)
class Tile:
    block_m: int
    block_n: int
    block_k: int
    blocks_per_sm: int = 1
    splits: int = 1  # of K
    library: bool = False  # cuBLAS, taken to be as fast as this tile

    def count(self, M: int, N: int) -> int:
        return cdiv(M, self.block_m) * cdiv(N, self.block_n) * self.splits

    def __str__(self) -> str:
        shown = f"{self.block_m}x{self.block_n}" + (f"/{self.splits}" if self.splits > 1 else "")
        return "cuBLAS" if self.library else shown


@dataclass(frozen=True)
class Program:
    """One program of attention: block_m queries on `keys` key lanes and `lanes` lanes of the head.

    tail_m: rows of a head's last tile, 0 if it is like the others; heads: that it takes one after the other.
    """

    block_m: int
    keys: int
    lanes: int
    tail_m: int = 0
    heads: int = 1

    def rounds(self, Nq: int, heads: int, sms: int) -> tuple[int, int]:
        """Rounds of whole tiles and of last tiles, for `heads` heads of Nq queries."""
        groups = heads // self.heads
        last = groups if self.tail_m else 0
        whole = cdiv(Nq, self.block_m) * groups - last
        first = cdiv(whole, sms)
        return first, cdiv(max(0, last - (first * sms - whole)), sms)

    def __str__(self) -> str:
        rows = f"{self.block_m}+{self.tail_m}" if self.tail_m else f"{self.block_m}"
        return f"{rows}x{self.keys}" + (f"*{self.heads}" if self.heads > 1 else "")


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
    hw: Hardware, dtype: str, M: int, N: int, K: int, tile: Tile, epilogue: str, memory_bytes: float,
    fill: float = FILL_US,
) -> tuple[float, str]:  # fmt: skip
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
    if "folded" in epilogue:
        aside += feed_us(hw, tile.block_m * statistics_bytes(K), active)
    if tile.blocks_per_sm == 1:
        busy = n * (main + aside)
    else:
        busy = n * max(main, aside) + min(main, aside)
    if tile.splits > 1:
        busy += l2_us(hw, 2 * 4.0 * M * N * tile.splits)
    return longest(fill, busy, copy_us(hw, memory_bytes), parts)


def statistics_bytes(width: int) -> int:
    """A row's: the mean of each 64 values and the sum of squares around it, in fp32."""
    return 8 * cdiv(width, 64)


def pass_us(hw: Hardware, bytes_moved: float) -> tuple[float, str]:
    """(time, what bounds it) of a kernel that is its bytes alone."""
    moving = l2_us(hw, bytes_moved) if warm(hw, bytes_moved) else copy_us(hw, bytes_moved)
    return longest(FILL_US, 0.0, moving, {})


def attention_us(
    hw: Hardware, dtype: str, B: int, H: int, Nq: int, D: int, program: Program, memory_bytes: float
) -> tuple[float, str]:
    """(time, what bounds it) of B H heads of Nq queries with memory_bytes through memory."""
    programs = cdiv(Nq, program.block_m) * B * H // program.heads
    instructions = SOFTMAX_INSTRUCTIONS / hw.fp32_lanes + 1 / hw.exps_per_sm_clock

    def tile(rows: int) -> tuple[float, dict[str, float]]:
        scores = rows * program.keys
        parts = {
            "matrix": 4.0 * scores * program.lanes / sm_flops_per_us(hw, dtype),
            "softmax": scores * instructions / hw.clock_mhz,
        }
        touched = 2 * (rows + program.keys) * D * DTYPES[dtype]
        feed = feed_us(hw, touched, min(programs, hw.sms))
        parts = {"feed": feed} if feed > sum(parts.values()) else parts
        return program.heads * sum(parts.values()), parts

    whole, last = program.rounds(Nq, B * H, hw.sms)
    one, parts = tile(program.block_m)
    busy = whole * one + (last * tile(program.tail_m)[0] if last else 0.0)
    return longest(FILL_US, busy, copy_us(hw, memory_bytes), parts)


def longest(
    fill: float, busy: float, memory: float, parts: Mapping[str, float]
) -> tuple[float, str]:
    """(time, what bounds it): the fill, then the multiprocessors or memory, whichever takes longer."""
    rest = max(busy, memory)
    bound = "memory" if memory > busy else max(parts, key=parts.__getitem__)
    return fill + rest, "fill" if fill > rest else bound
