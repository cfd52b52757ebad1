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

Rotary positions are applied as q and k are loaded: the two halves of their lanes, turned in fp32 and rounded once, are
multiplied as two products. Nothing is written, but every query tile turns all keys anew and reads 4 P D bytes of
cosines and sines, twice what it reads of k, through the L2 cache.

A mask makes scores -inf where a key does not count. Flash's running maximum then starts at the least finite number: in
a block without a key exp2(-inf - max) is 0, and what that block leaves is forgotten at the first key.

A head dimension that is no power of two is covered by up to three parts, each a power of two: 72 =
64 + 16 lanes with 8 masked, where padding to 128 would waste 44% of the matrix work.
"""

from dataclasses import replace

import torch
import triton
from torch import Tensor

from .attention_kernels import flash_kernel, one_pass_kernel
from .attention_tiles import MAX_HEAD_DIM, Config, head_parts, launch_config
from .dependent import options as dependent
from .launch import COMPILE_OPTIONS, operator
from .linear import fp32_precision
from .operators import check_tensor, refuse
from .rotation import rotate
from .tuning import Gpu, cached, cdiv, dtype_name, gpu_of, tuned

ROTATED_HEAD_DIMS = (32, 64, 128)  # by the kernels
_LOG2_E = 1.4426950408889634


def attention_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None = None,
    rope: Tensor | None = None,
) -> Tensor:
    """The definition; tests evaluate it in float64."""
    if rope is not None:
        q, k = rotate(q, rope, k.shape[1]), rotate(k, rope, k.shape[1])
    s = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if mask is not None:
        s = s.masked_fill(~mask[:, None, None], float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", s.softmax(-1), v).flatten(2)


@cached
def config_for(
    B: int,
    H: int,
    Nq: int,
    N: int,
    D: int,
    dtype: torch.dtype,
    gpu: Gpu,
    masked: bool = False,
    rotated: bool = False,
) -> Config:
    """The measured configuration of this shape on this GPU, else the rule's. Masks and rotation are not measured, and
    what was measured without them may spill with them: the rule's.
    """
    plain = not (masked or rotated)
    shape = dict(B=B, H=H, Nq=Nq, N=N, D=D, dtype=dtype_name(dtype))
    found = tuned(gpu, "attention", **shape) if plain else None
    rule = launch_config(Nq, N, D, dtype.itemsize, gpu, B * H, masked, rotated)
    c = Config(**found) if found else rule
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


def _check_mask(mask: Tensor, B: int, N: int, device: torch.device) -> None:
    check_tensor("attention", "mask", mask, (B, N), device, torch.bool)
    if N * mask.stride(1) >= 2**31:
        refuse("attention", f"a mask of {N} keys spans over 2^31 values")


def _check_rope(rope: Tensor, Nq: int, N: int, D: int, device: torch.device) -> None:
    P = rope.shape[1] if rope.dim() == 3 else 0
    if D % 2:
        refuse("attention", f"head_dim is {D}, rope needs an even one")
    check_tensor("attention", "rope", rope, (2, P, D // 2), device, torch.float32)
    if max(P, Nq) > N:
        refuse(
            "attention",
            f"rope is of {P} tokens and q of {Nq}, k of {N}: expected no more than k has",
        )


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None = None,
    rope: Tensor | None = None,
    gpu: Gpu | None = None,
    config: Config | None = None,
) -> Tensor:
    """q [B, Nq, H, D], k and v [B, N, H, D], any strides -> [B, Nq, H * D] in q.dtype.

    mask: bool [B, N], any strides: the keys that count, at least one of each image. What the others hold is to be
    finite; a row of an image without any is anything. rope: float32 [2, P, D / 2], cosines and sines of the last P of
    the N tokens; q is then of the first Nq of them. The kernels turn heads of 32, 64 and 128; others of an even D are
    turned by tensor operations before the launch.

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
    if mask is not None:
        _check_mask(mask, B, N, q.device)
    if rope is not None:
        _check_rope(rope, Nq, N, D, q.device)
    o = torch.empty((B, Nq, H * D), dtype=q.dtype, device=q.device)
    if o.numel() == 0:
        return o
    if rope is not None and D not in ROTATED_HEAD_DIMS:
        q, k, rope = rotate(q, rope, N), rotate(k, rope, N), None
    q, k, v = (t if t.stride(-1) == 1 or D == 1 else t.contiguous() for t in (q, k, v))
    spans = (n * t.stride(1) + H * t.stride(2) for n, t in ((Nq, q), (N, k), (N, v)))
    if max(Nq * H * D, *spans) >= 2**31:
        refuse("attention", f"an image of {max(Nq, N)} tokens spans over 2^31 values")
    gpu = gpu or gpu_of(q.device)
    c = config or config_for(B, H, Nq, N, D, q.dtype, gpu, mask is not None, rope is not None)
    if why := misfit(c, H, Nq, N, D, dtype_name(q.dtype)):
        refuse("attention", f"{why}: {c}")
    grid = (cdiv(Nq, c.block_m) * B * H // c.heads,)
    (qb, qn, qh), (kb, kn, kh), (vb, vn, vh) = (t.stride()[:3] for t in (q, k, v))
    # what is None is a constant, and left out of the kernel
    mb, mn = (None, None) if mask is None else mask.stride()
    keep = None if mask is None else mask.view(torch.uint8)
    prefix = None if rope is None else N - rope.shape[1]
    rope = None if rope is None else rope.contiguous()
    args = (q, k, v, o, keep, rope, Nq, N, H, scale * _LOG2_E, prefix)
    args += (qb, kb, vb, mb, qn, kn, vn, mn, qh, kh, vh)
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


def _fake(q: Tensor, k: Tensor, v: Tensor, scale: float, mask=None, rope=None) -> Tensor:
    return q.new_empty((*q.shape[:2], q.shape[2] * q.shape[3]))


attention = operator(
    "attention(Tensor q, Tensor k, Tensor v, float scale, Tensor? mask=None, Tensor? rope=None) -> Tensor",
    launch,
    _fake,
)
