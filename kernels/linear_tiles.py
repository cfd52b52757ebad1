"""Which tile a matrix product runs in: a model of one multiprocessor's clocks, and the tiles that it chooses from.

A tile takes a step for each BLOCK_K of K, and a step takes as long as the slowest of four things: its products on the
matrix unit, its bytes through the multiprocessor's port, its share of what the L2 cache gives to all, and the latency
of a load over the stages that hide it. What a multiprocessor does is its rounds of tiles; with two blocks on it one
stores while the other multiplies, with one block the stores come on top. The busiest multiprocessor, the one with a
tile more than the others, decides. Splitting K makes more tiles, of fewer steps each, and moves partial sums.

The constants are estimates from the vendor's documents, not measurements; a measured table goes before them
(tuning.tuned).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from .tuning import Gpu, cdiv


@dataclass(frozen=True)
class Config:
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    slices: int = 1  # column slices of the epilogue
    blocks_per_sm: int = 1
    splits: int = 1  # of K: partial sums in fp32, added up by linear_norm's second launch
    flatten: bool = False  # the next tile's loads begin before this one is stored
    library: bool = False  # cuBLAS, then the epilogue as a pass of its own

    def __post_init__(self) -> None:
        blocks = self.block_m, self.block_n, self.block_k
        if not all(n in (16, 32, 64, 128, 256) for n in blocks):
            raise ValueError(f"blocks of {blocks}: expected powers of two from 16 to 256")
        if self.num_warps not in (4, 8, 16) or not 1 <= self.num_stages <= 8:
            raise ValueError(
                f"{self.num_warps} warps and {self.num_stages} stages: expected 4, 8 or 16 and 1 to 8"
            )
        if self.slices not in (1, 2) or not 1 <= self.splits <= 64 or not 1 <= self.blocks_per_sm <= 8:  # fmt: skip
            raise ValueError(
                f"{self.slices} slices, {self.splits} splits, {self.blocks_per_sm} blocks a multiprocessor: "
                "expected 1 or 2, 1 to 64, 1 to 8"
            )

    @property
    def registers(self) -> int:
        """A thread's registers if blocks_per_sm blocks are to share the 65536 of a multiprocessor.

        Left to itself ptxas for sm_100 aims lower, and spills.
        """
        return min(255, 65536 // (32 * self.num_warps * self.blocks_per_sm))


# the tile is that of the epilogue's pass, 32 values a lane: with 128 of them fp32 spills
LIBRARY = Config(32, 128, 64, 4, 1, library=True)

# Each compiles without spills with every epilogue: vit-fast inspect --all
_DESCRIPTOR_TILES = (
    Config(128, 256, 64, 8, 3, slices=2),
    Config(128, 128, 64, 8, 3, slices=2, blocks_per_sm=2),
    Config(64, 256, 64, 4, 4, slices=2),
    Config(64, 128, 64, 4, 4, slices=2, blocks_per_sm=2),
    Config(64, 64, 128, 4, 3, blocks_per_sm=2),
    Config(64, 64, 64, 4, 6, blocks_per_sm=2),
)
_POINTER_TILES = (
    Config(128, 128, 64, 8, 3),
    Config(64, 128, 64, 8, 3),
    Config(64, 64, 64, 4, 4),
)
_FP32_TILES = (Config(64, 64, 32, 4, 3), Config(32, 64, 32, 4, 3))

_SPLITS = (1, 2, 3, 4, 6, 8)

# multiply-adds a clock of one multiprocessor's matrix unit, bf16 in, fp32 sums, dense
_MATRIX = {8: 1024, 9: 2048, 10: 4096}
_MATRIX_CONSUMER = 512  # sm_86, sm_89, sm_120
_FP32 = 128
_SUSTAINED = 0.8  # of that rate: 788 of 989 TFLOP/s on an H200 (benchmarks/LOG.md)
_PORT = 64  # bytes a clock into one multiprocessor
_L2 = 40  # bytes a clock, an even share of what the L2 cache gives
_LATENCY = 800  # clocks from a load to its data
_EPILOGUE = 0.12  # clocks an element


def tiles(itemsize: int, descriptors: bool) -> tuple[Config, ...]:
    return _FP32_TILES if itemsize == 4 else _DESCRIPTOR_TILES if descriptors else _POINTER_TILES


def clocks(c: Config, M: int, N: int, K: int, itemsize: int, gpu: Gpu) -> float:
    """An estimate: what the busiest multiprocessor takes for x [M, K] times w [N, K]. Pure."""
    if itemsize == 4:
        matrix = _FP32
    else:
        consumer = gpu.arch in (86, 89)
        matrix = _MATRIX_CONSUMER if consumer else _MATRIX.get(gpu.arch // 10, _MATRIX_CONSUMER)
    matrix *= _SUSTAINED
    count = cdiv(M, c.block_m) * cdiv(N, c.block_n) * c.splits
    steps = cdiv(cdiv(K, c.splits), c.block_k)
    a_round = cdiv(count, gpu.sms)
    at_once = min(a_round, c.blocks_per_sm)
    moved = (c.block_m + c.block_n) * c.block_k * itemsize
    busy = min(count, gpu.sms) / gpu.sms  # an idle one leaves its share to the others
    step = max(c.block_m * c.block_n * c.block_k / matrix, moved / _PORT, moved * busy / _L2)
    alone = max(step, _LATENCY / max(1, c.num_stages - 1))
    epilogue = c.block_m * c.block_n * _EPILOGUE
    # blocks side by side hide each other's latency, epilogue and refill, but for the last one's
    work = max(a_round * steps * step, cdiv(a_round, at_once) * steps * alone)
    stores = epilogue * (cdiv(a_round, at_once) if at_once == 1 else 1)
    refill = _LATENCY * cdiv(a_round, at_once)
    partial = 0.0
    if c.splits > 1:
        partial = 2 * 4 * M * N * c.splits / (_L2 * gpu.sms)  # written, and read again
    return work + stores + refill + partial


def candidates(
    M: int, N: int, K: int, itemsize: int, descriptors: bool, gpu: Gpu
) -> tuple[Config, ...]:
    """What is worth measuring for this shape: every tile, the largest with its loads run ahead, and cuBLAS."""
    choice = tiles(itemsize, descriptors)
    ahead = (replace(choice[0], flatten=True),) if choice is _DESCRIPTOR_TILES else ()
    return (*choice, *ahead, LIBRARY)


@lru_cache
def launch_config(
    M: int, N: int, K: int, itemsize: int, descriptors: bool, gpu: Gpu, aligned: bool = True
) -> Config:
    """The tile of the fewest clocks. Pure.

    Rows that are not `aligned` to 16 bytes take more addresses, too many for the largest tile.
    """
    choice = tiles(itemsize, descriptors)
    choice = choice if aligned else choice[1:]
    return min(choice, key=lambda c: clocks(c, M, N, K, itemsize, gpu))


def split_candidates(K: int, itemsize: int, descriptors: bool) -> tuple[Config, ...]:
    """What linear_norm chooses from: every tile, K whole or split so that each part takes two steps or more."""
    return tuple(
        replace(c, splits=s)
        for c in tiles(itemsize, descriptors)
        for s in _SPLITS
        if s == 1 or K >= 2 * s * c.block_k
    )
