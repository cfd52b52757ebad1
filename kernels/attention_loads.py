"""What the attention kernels read and write: rows of a head by lanes, turned if they are patches; which keys count."""

import triton
import triton.language as tl


@triton.jit
def lanes(
    ptr,
    offs,
    stride,
    N,
    D: tl.constexpr,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    TAIL: tl.constexpr,
):
    """Rows `offs` of one head, lanes FIRST .. FIRST + WIDTH: [rows, WIDTH], zero past N (checked if
    TAIL) and past D.
    """
    lanes = FIRST + tl.arange(0, WIDTH)
    ptrs = ptr + offs[:, None] * stride + lanes[None, :]
    if TAIL and FIRST + WIDTH > D:
        return tl.load(ptrs, mask=(offs < N)[:, None] & (lanes < D)[None, :], other=0.0)
    elif TAIL:
        return tl.load(ptrs, mask=(offs < N)[:, None], other=0.0)
    elif FIRST + WIDTH > D:
        return tl.load(ptrs, mask=(lanes < D)[None, :], other=0.0)
    else:
        return tl.load(ptrs)


@triton.jit
def halves(
    ptr,
    rope_ptr,  # [2, keys - prefix, D / 2], contiguous: cosines and sines; None: nothing turns
    offs, stride, N, keys, prefix,
    D: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Rows `offs` of one head as the two halves of their lanes, [rows, D / 2] each; a patch, which is a row from
    `prefix` on, is turned in fp32 and rounded once. Without rope_ptr all lanes, [rows, D], twice.
    """
    if rope_ptr is None:
        x = lanes(ptr, offs, stride, N, D, 0, D, TAIL)
        return x, x
    else:
        HALF: tl.constexpr = D // 2
        x1 = lanes(ptr, offs, stride, N, D, 0, HALF, TAIL)
        x2 = lanes(ptr, offs, stride, N, D, HALF, HALF, TAIL)
        patch = offs - prefix
        angles = rope_ptr + patch[:, None] * HALF + tl.arange(0, HALF)[None, :]
        turns = ((patch >= 0) & (offs < N))[:, None]
        # one and zero leave a row as it is
        cos = tl.load(angles, mask=turns, other=1.0)
        sin = tl.load(angles + (keys - prefix) * HALF, mask=turns, other=0.0)
        y1 = x1 * cos - x2 * sin
        y2 = x2 * cos + x1 * sin
        return y1.to(x1.dtype), y2.to(x1.dtype)


@triton.jit
def counting(mask_ptr, offs, stride, N, TAIL: tl.constexpr):
    """Which of the keys `offs` count: those that mask_ptr (None: all) says, none past N (checked if TAIL)."""
    if mask_ptr is None:
        return offs < N
    elif TAIL:
        return tl.load(mask_ptr + offs * stride, mask=offs < N, other=0) != 0
    else:
        return tl.load(mask_ptr + offs * stride) != 0


@triton.jit
def store_lanes(ptr, offs, stride, N, o, D: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    lanes = FIRST + tl.arange(0, WIDTH)
    mask = (offs < N)[:, None] & (lanes < D)[None, :]
    tl.store(ptr + offs[:, None] * stride + lanes[None, :], o.to(ptr.dtype.element_ty), mask=mask)
