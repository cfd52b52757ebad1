"""The tiles of attention: the pure rule behind the launcher in attention.py, and what is worth measuring."""

from dataclasses import dataclass, replace
from functools import lru_cache

from .tuning import Gpu, cdiv

MAX_HEAD_DIM = 128


@dataclass(frozen=True)
class Config:
    block_m: int
    chunks: tuple[int, int, int]  # key chunks of the one-pass kernel; FLASH: the other one
    block_n: int  # keys a block in the flash kernel
    num_warps: int
    num_stages: int
    widest: int = MAX_HEAD_DIM  # lanes of the head in one product
    tail_m: int = 0  # rows of a head's last tile; 0: block_m
    heads: int = 1  # heads that a program of the one-pass kernel takes, one after the other
    blocks_per_sm: int = 2  # that are to share the 65536 registers of a multiprocessor

    def __post_init__(self) -> None:
        rows = self.block_m, self.block_n
        if not all(n in (16, 32, 64, 128, 256) for n in rows) or self.tail_m not in (0, 16, 32):
            raise ValueError(
                f"blocks of {rows} and a tail of {self.tail_m}: expected powers of two from 16 to 256, and 0, 16 or 32"
            )
        falling = tuple(sorted(self.chunks, reverse=True)) == self.chunks
        if not falling or not all(n in (0, 16, 32, 64, 128) for n in self.chunks):
            raise ValueError(
                f"chunks of {self.chunks} keys: expected powers of two from 16 to 128, the largest first"
            )
        small = 1 <= self.num_stages <= 8 and 1 <= self.blocks_per_sm <= 8
        if self.num_warps not in (4, 8, 16) or not small:
            raise ValueError(
                f"{self.num_warps} warps, {self.num_stages} stages, {self.blocks_per_sm} blocks a multiprocessor: "
                "expected 4, 8 or 16, 1 to 8, 1 to 8"
            )
        if self.widest not in (16, 32, 64, 128) or self.heads not in (1, 2, 4, 8):
            raise ValueError(
                f"{self.widest} lanes a product and {self.heads} heads a program: expected a power of two up to "
                "128, and up to 8"
            )

    @property
    def registers(self) -> int:
        return min(255, 65536 // (32 * self.num_warps * self.blocks_per_sm))


FLASH = (0, 0, 0)


@lru_cache
def head_parts(D: int, widest: int = MAX_HEAD_DIM) -> tuple[int, int, int]:
    """Powers of two from 16 to `widest` that cover D lanes with under 16 to spare, three at most:
    72 -> (64, 16, 0).
    """
    parts, lanes = [], cdiv(D, 16) * 16
    while lanes:
        parts.append(min(widest, 1 << (lanes.bit_length() - 1)))
        lanes -= parts[-1]
    return tuple(parts + [0] * (3 - len(parts)))


def key_chunks(N: int) -> tuple[int, int, int]:
    """At most three chunks, each a power of two from 16 to 128, that cover N keys with the fewest
    lanes, then the fewest chunks; FLASH where three do not reach.
    """
    sizes = (0, 16, 32, 64, 128)
    covers = [
        (a, b, c) for a in sizes[1:] for b in sizes for c in sizes if a >= b >= c and a + b + c >= N
    ]
    return min(covers, key=lambda c: (sum(c), 3 - c.count(0)), default=FLASH)


def query_tail(Nq: int, block_m: int) -> int:
    """Rows of the last tile where a small one holds what is left: 16 for the 1 of 257, the 5 of 197; 0: a tile like
    the others.
    """
    left = Nq % block_m
    return 0 if left == 0 or left > 32 or block_m <= 32 else 16 if left <= 16 else 32


@lru_cache
def launch_config(
    Nq: int,
    N: int,
    D: int,
    itemsize: int,
    gpu: Gpu,
    heads: int = 1,
    masked: bool = False,
    rotated: bool = False,
) -> Config:
    """Small query tiles and few warps: two to four blocks share a multiprocessor, and the softmax
    of one overlaps the matrix products of another. Every choice compiles without spills. Pure.

    `heads`: of all images together. Where a head is one small tile and there are many of them, a program takes two.
    """
    lanes = sum(head_parts(D))
    if itemsize == 4:
        # IEEE fp32 has no matrix unit: a product keeps its operands in registers, so it is narrow
        if lanes <= 96:
            return Config(16, FLASH, 16, 4, 2, widest=32)
        return Config(16, FLASH, 32, 8, 1, widest=64)
    block_m = 16 if Nq <= 16 else 64
    tail_m = query_tail(Nq, block_m)
    chunks = key_chunks(N)
    # mma.sync reads registers only: the scores of more than 128 keys leave none for its operands
    if D in (16, 32, 64) and 0 < sum(chunks) <= (272 if gpu.bulk_copies else 128):
        tiny = Nq <= 64 and N <= 64 and heads % 2 == 0 and heads >= 16 * gpu.sms
        # 60 KB of shared memory for 208 keys, 76 for 272
        together = 3 if sum(chunks) <= 208 else 2
        return Config(block_m, chunks, 64, 4, 1, 64, tail_m, 2 if tiny else 1, together)
    if Nq <= 16 and lanes > 96:
        return Config(block_m, FLASH, 32, 4, 2)
    if not gpu.bulk_copies and lanes >= 96:
        return Config(128 if Nq > 16 else 16, FLASH, 32, 8 if Nq > 16 else 4, 3)
    stage = 2 * 64 * 2 * lanes  # bytes of 64 keys and 64 values
    stages = 3 if 3 * stage <= gpu.smem // 2 else 2
    return Config(block_m, FLASH, 64, 4, stages, tail_m=tail_m)


def candidates(Nq: int, N: int, D: int, itemsize: int, gpu: Gpu) -> tuple[Config, ...]:
    """What is worth measuring for this shape: the rule's choice, and what differs from it in one thing."""
    rule = launch_config(Nq, N, D, itemsize, gpu)
    choice = [rule]
    if itemsize == 2 and Nq > 16:
        choice.append(replace(rule, tail_m=0))
        if gpu.bulk_copies:
            tail = query_tail(Nq, 64)
            choice += [Config(64, FLASH, 64, 4, stages, tail_m=tail) for stages in (2, 3)]
            choice += [Config(64, FLASH, 128, 4, 2, tail_m=tail)] if D <= 64 else []
            choice += [Config(128, FLASH, 128, 8, 2, blocks_per_sm=1)] if D <= 64 else []
            choice += [Config(128, FLASH, 64, 8, 3)] if D <= 80 else []
        if rule.chunks[0] and N <= 64 and Nq <= 64:
            choice += [replace(rule, heads=2), replace(rule, heads=4)]
    return tuple(dict.fromkeys(choice))
