"""Attention: softmax(q k^T * scale) v for every head, exact, in one launch, scores never in memory.

q, k and v are read by stride, so they may be three views of one packed projection [B, N, 3, H, D];
the result is written as [B, N, H * D], ready for the output projection: nothing is permuted or
copied. 4 B H Nq N D operations; q, k, v and the result cross memory once (a head's k and v are
shared by its query tiles through the L2 cache).

With t = s * scale * log2(e), softmax is exp2(t - max t) / sum: one FMA and one exponential a score.
Two kernels:

- one pass, for half-precision heads of 16, 32 or 64: up to 272 keys (128 where there is no wgmma)
  sit in at most three chunks (197 = 128 + 64 + 16 lanes), all scores are known before the first
  exponential, and there is no running maximum to correct;
- flash (Dao et al. 2022, algorithm 1; the sum is divided out at the end as in Dao 2023): the tail
  of the keys in a chunk of its own width, then blocks of BLOCK_N with a running maximum.

The rows that are left after the last whole tile of 64 queries, 5 of 197 and 1 of 257, are a tile of 16
where they fit.

A head dimension that is no power of two is covered by up to three parts, each a power of two: 72 =
64 + 16 lanes with 8 masked, where padding to 128 would waste 44% of the matrix work.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton
from torch import Tensor

from .attention_kernels import flash_kernel, one_pass_kernel
from .dependent import options as dependent
from .launch import COMPILE_OPTIONS, operator
from .linear import fp32_precision
from .operators import check_tensor, refuse
from .tuning import Gpu, cached, cdiv, dtype_name, gpu_of, tuned

MAX_HEAD_DIM = 128
_LOG2_E = 1.4426950408889634


def attention_ref(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The definition; tests evaluate it in float64."""
    s = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    return torch.einsum("bhqk,bkhd->bqhd", s.softmax(-1), v).flatten(2)


@dataclass(frozen=True)
class Config:
    block_m: int
    chunks: tuple[int, int, int]  # key chunks of the one-pass kernel; _FLASH: the other one
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


_FLASH = (0, 0, 0)


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
    lanes, then the fewest chunks; _FLASH where three do not reach.
    """
    sizes = (0, 16, 32, 64, 128)
    covers = [
        (a, b, c) for a in sizes[1:] for b in sizes for c in sizes if a >= b >= c and a + b + c >= N
    ]
    return min(covers, key=lambda c: (sum(c), 3 - c.count(0)), default=_FLASH)


def query_tail(Nq: int, block_m: int) -> int:
    """Rows of the last tile where a small one holds what is left: 16 for the 1 of 257, the 5 of 197; 0: a tile like
    the others.
    """
    left = Nq % block_m
    return 0 if left == 0 or left > 32 or block_m <= 32 else 16 if left <= 16 else 32


@lru_cache
def launch_config(Nq: int, N: int, D: int, itemsize: int, gpu: Gpu, heads: int = 1) -> Config:
    """Small query tiles and few warps: two to four blocks share a multiprocessor, and the softmax
    of one overlaps the matrix products of another. Every choice compiles without spills. Pure.

    `heads`: of all images together. Where a head is one small tile and there are many of them, a program takes two.
    """
    lanes = sum(head_parts(D))
    if itemsize == 4:
        # IEEE fp32 has no matrix unit: a product keeps its operands in registers, so it is narrow
        if lanes <= 96:
            return Config(16, _FLASH, 16, 4, 2, widest=32)
        return Config(16, _FLASH, 32, 8, 1, widest=64)
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
        return Config(block_m, _FLASH, 32, 4, 2)
    if not gpu.bulk_copies and lanes >= 96:
        return Config(128 if Nq > 16 else 16, _FLASH, 32, 8 if Nq > 16 else 4, 3)
    stage = 2 * 64 * 2 * lanes  # bytes of 64 keys and 64 values
    stages = 3 if 3 * stage <= gpu.smem // 2 else 2
    return Config(block_m, _FLASH, 64, 4, stages, tail_m=tail_m)


def candidates(Nq: int, N: int, D: int, itemsize: int, gpu: Gpu) -> tuple[Config, ...]:
    """What is worth measuring for this shape: the rule's choice, and what differs from it in one thing."""
    rule = launch_config(Nq, N, D, itemsize, gpu)
    choice = [rule]
    if itemsize == 2 and Nq > 16:
        choice.append(replace(rule, tail_m=0))
        if gpu.bulk_copies:
            tail = query_tail(Nq, 64)
            choice += [Config(64, _FLASH, 64, 4, stages, tail_m=tail) for stages in (2, 3)]
            choice += [Config(64, _FLASH, 128, 4, 2, tail_m=tail)] if D <= 64 else []
            choice += [Config(128, _FLASH, 128, 8, 2, blocks_per_sm=1)] if D <= 64 else []
            choice += [Config(128, _FLASH, 64, 8, 3)] if D <= 80 else []
        if rule.chunks[0] and N <= 64 and Nq <= 64:
            choice += [replace(rule, heads=2), replace(rule, heads=4)]
    return tuple(dict.fromkeys(choice))


@cached
def config_for(B: int, H: int, Nq: int, N: int, D: int, dtype: torch.dtype, gpu: Gpu) -> Config:
    """The measured configuration of this shape on this GPU, else the rule's."""
    found = tuned(gpu, "attention", B=B, H=H, Nq=Nq, N=N, D=D, dtype=dtype_name(dtype))
    c = Config(**found) if found else launch_config(Nq, N, D, dtype.itemsize, gpu, B * H)
    # the heads of an image are shared out evenly
    return c if H % c.heads == 0 else replace(c, heads=1)


def misfit(c: Config, H: int, Nq: int, N: int, D: int, dtype: str, **_: int) -> str:
    """Why a configuration would leave values out or round them, or ""."""
    if H % c.heads:
        return f"{c.heads} heads a program do not share out {H} heads"
    if c.chunks[0] and (sum(c.chunks) < N or D not in (16, 32, 64) or dtype == "fp32"):
        return f"one pass over {sum(c.chunks)} keys is not for {N} keys, head_dim {D}, {dtype}"
    if c.heads > 1 and not c.chunks[0]:
        return f"the flash kernel takes one head a program, not {c.heads}"
    if c.tail_m and not 0 < Nq % c.block_m <= c.tail_m:
        return (
            f"a last tile of {c.tail_m} rows does not hold what {Nq} queries leave of {c.block_m}"
        )
    return ""


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    gpu: Gpu | None = None,
    config: Config | None = None,
) -> Tensor:
    """q [B, Nq, H, D], k and v [B, N, H, D], any strides -> [B, Nq, H * D] in q.dtype.

    ValueError names shapes and dtypes that do not fit; D is at most 128. A tensor whose last axis
    is not contiguous is copied first. `gpu` and `config` override the device's own, for tests and
    for compiling without one.
    """
    B, Nq, H, D = q.shape if q.dim() == 4 else (0, 0, 0, 0)
    N = k.shape[1] if k.dim() == 4 else 0
    if q.dim() != 4 or N == 0 or not k.shape == v.shape == (B, N, H, D):
        refuse(
            "attention",
            f"q is {tuple(q.shape)}, k is {tuple(k.shape)}, v is {tuple(v.shape)}:"
            " expected [B, Nq, H, D] and twice [B, N, H, D]",
        )
    if not 0 < D <= MAX_HEAD_DIM:
        refuse("attention", f"head_dim is {D}, supported are 1 to {MAX_HEAD_DIM}")
    if not scale > 0:
        refuse("attention", f"scale is {scale}, expected a positive number")
    check_tensor("attention", "q", q, q.shape, q.device)
    check_tensor("attention", "k", k, k.shape, q.device, q.dtype)
    check_tensor("attention", "v", v, v.shape, q.device, q.dtype)
    o = torch.empty((B, Nq, H * D), dtype=q.dtype, device=q.device)
    if o.numel() == 0:
        return o
    q, k, v = (t if t.stride(-1) == 1 or D == 1 else t.contiguous() for t in (q, k, v))
    spans = (n * t.stride(1) + H * t.stride(2) for n, t in ((Nq, q), (N, k), (N, v)))
    if max(Nq * H * D, *spans) >= 2**31:
        refuse("attention", f"an image of {max(Nq, N)} tokens spans over 2^31 values")
    gpu = gpu or gpu_of(q.device)
    c = config or config_for(B, H, Nq, N, D, q.dtype, gpu)
    if why := misfit(c, H, Nq, N, D, dtype_name(q.dtype)):
        refuse("attention", f"{why}: {c}")
    grid = (cdiv(Nq, c.block_m) * B * H // c.heads,)
    strides = [t.stride(i) for i in (0, 1, 2) for t in (q, k, v)]
    args = (q, k, v, o, Nq, N, H, scale * _LOG2_E, *strides)
    options = dict(num_warps=c.num_warps, num_stages=c.num_stages, **COMPILE_OPTIONS)
    options |= dict(D=D, BLOCK_M=c.block_m, TAIL_M=c.tail_m, **dependent(gpu))
    if gpu.bulk_copies and q.element_size() == 2:
        # left to itself ptxas for sm_90 takes 206, which is one block less, and for sm_100 too few, and spills
        options["maxnreg"] = c.registers
    if c.chunks[0]:
        C0, C1, C2 = c.chunks
        one_pass_kernel[grid](*args, HEADS=c.heads, C0=C0, C1=C1, C2=C2, **options)
    else:
        W0, W1, W2 = head_parts(D, c.widest)
        tail = N % c.block_n
        flash_kernel[grid](
            *args, W0=W0, W1=W1, W2=W2, BLOCK_N=c.block_n,
            TAIL_N=max(16, triton.next_power_of_2(tail)) if tail else 0,
            PRECISION=fp32_precision(), **options,
        )  # fmt: skip
    return o


def _fake(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return q.new_empty((*q.shape[:2], q.shape[2] * q.shape[3]))


attention = operator(
    "attention(Tensor q, Tensor k, Tensor v, float scale) -> Tensor", launch, _fake
)
