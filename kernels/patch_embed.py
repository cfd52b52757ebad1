"""Patch embedding: pixels -> tokens in one launch.

A convolution whose stride is its kernel is a matrix product: a patch's C * P * P pixels, gathered
by stride from wherever they are (NCHW, NHWC, a crop), times the filters, plus bias and position,
written behind the prefix rows (class token, registers), which the same launch writes. B * C * H * W
pixels are read (the tiles that need the same pixels run side by side and meet in the L2 cache) and
B * N * D tokens are written; unfold, bias, concatenation and position as passes of their own would
move 8 B N D elements more.

uint8 pixels x enter as x - 128, exact in every float format, against filters and a bias that hold
the rescaling and the normalisation (vit_fast.weights folds them): centred, the sum does not cancel
against a large bias.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependent import options as dependent
from .dependent import wait
from .launch import COMPILE_OPTIONS, operator
from .linear import fp32_precision
from .operators import check_tensor, refuse
from .tuning import Gpu, cdiv, gpu_of

UINT8_CENTRE = 128


def patch_embed_ref(pixels, weight, bias, prefix, pos, patch: int) -> Tensor:
    """The definition; tests evaluate it in float64."""
    B, C, H, W = pixels.shape
    x = pixels.to(weight.dtype) - (UINT8_CENTRE if pixels.dtype == torch.uint8 else 0)
    x = (
        x.reshape(B, C, H // patch, patch, W // patch, patch)
        .permute(0, 2, 4, 1, 3, 5)
        .flatten(3)
        .flatten(1, 2)
    )
    tokens = x @ weight.T
    tokens = tokens if bias is None else tokens + bias
    tokens = tokens if pos is None else tokens + pos
    return tokens if prefix is None else torch.cat([prefix.expand(B, -1, -1), tokens], 1)


@lru_cache
def launch_config(M: int, D: int, itemsize: int, gpu: Gpu) -> dict[str, int]:
    """Tile and warps for M patches of D channels: the largest tile that gives every multiprocessor
    one. Pure.
    """
    if itemsize == 4:
        return {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2}
    tiles = ((128, 128), (64, 128), (64, 64))
    # without wgmma the addresses of a gather leave too few registers for the tile between
    for block_m, block_n in tiles if gpu.bulk_copies else tiles[::2]:
        if cdiv(M, block_m) * cdiv(D, block_n) >= gpu.sms:
            break
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": 64,
        "num_warps": 8 if block_m == 128 else 4,
        "num_stages": 2,
    }


@triton.jit
def _patch_embed_kernel(
    x_ptr,  # [B, C, H, W], any strides
    w_ptr,  # [D, C * P * P], contiguous
    bias_ptr,  # [D] or None
    prefix_ptr,  # [R, D], contiguous, or None
    pos_ptr,  # [GH * GW, D], contiguous, or None
    y_ptr,  # [B, R + GH * GW, D], contiguous
    B, GH, GW, D,
    stride_xb, stride_xc, stride_xh, stride_xw,
    K: tl.constexpr, P: tl.constexpr, R: tl.constexpr,
    UINT8: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait(PDL)
    tiles_n = tl.cdiv(D, BLOCK_N)
    pid_m = tl.program_id(0) // tiles_n
    offs_n = (tl.program_id(0) % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < D
    patches = GH * GW
    tiles_m = tl.cdiv(B * patches, BLOCK_M)
    dtype = y_ptr.dtype.element_ty
    if pid_m < tiles_m:
        offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
        mask_m = offs_m < B * patches
        b = (offs_m // patches).to(tl.int64)
        p = offs_m % patches
        # a patch's first pixel, and each pixel's place beside it
        corner = b * stride_xb + (p // GW) * P * stride_xh + (p % GW) * P * stride_xw
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k0 in range(0, K, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            inside = (k // (P * P)) * stride_xc + (k // P % P) * stride_xh + (k % P) * stride_xw
            x_ptrs = x_ptr + corner[:, None] + inside[None, :]
            w_ptrs = w_ptr + offs_n[None, :].to(tl.int64) * K + k[:, None]
            if K % BLOCK_K == 0:
                x = tl.load(x_ptrs, mask=mask_m[:, None], other=0)
                w = tl.load(w_ptrs, mask=mask_n[None, :], other=0.0)
            else:
                x = tl.load(x_ptrs, mask=mask_m[:, None] & (k < K)[None, :], other=0)
                w = tl.load(w_ptrs, mask=mask_n[None, :] & (k < K)[:, None], other=0.0)
            if UINT8:
                # lanes past K meet zero filters
                x = (x.to(tl.int16) - 128).to(dtype)
            acc = tl.dot(x, w, acc, input_precision=PRECISION)
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
        mask = mask_m[:, None] & mask_n[None, :]
        if pos_ptr is not None:
            acc += tl.load(pos_ptr + p[:, None] * D + offs_n[None, :], mask=mask, other=0.0).to(
                tl.float32
            )
        row = b * (R + patches) + R + p
        tl.store(y_ptr + row[:, None] * D + offs_n[None, :], acc.to(dtype), mask=mask)
    elif prefix_ptr is not None:
        offs_r = (pid_m - tiles_m) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (offs_r < B * R)[:, None] & mask_n[None, :]
        rows = tl.load(
            prefix_ptr + (offs_r % R)[:, None] * D + offs_n[None, :], mask=mask, other=0.0
        )
        row = (offs_r // R).to(tl.int64) * (R + patches) + offs_r % R
        tl.store(y_ptr + row[:, None] * D + offs_n[None, :], rows, mask=mask)


def _shape(
    pixels: Tensor, weight: Tensor, prefix: Tensor | None, patch: int
) -> tuple[int, int, int]:
    rows = (pixels.shape[2] // patch) * (pixels.shape[3] // patch)
    return pixels.shape[0], rows + (0 if prefix is None else prefix.shape[0]), weight.shape[0]


def launch(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prefix: Tensor | None,
    pos: Tensor | None,
    patch: int,
    gpu: Gpu | None = None,
) -> Tensor:
    """pixels [B, C, H, W] -> tokens [B, R + (H / patch) (W / patch), D] in weight.dtype; patches in
    row-major order.

    pixels: weight.dtype, or uint8 with folded weights (see above), any strides; weight [D, C *
    patch * patch] in the order (channel, row, column); bias [D] of any float dtype; prefix [R, D]
    and pos [patches, D] in weight.dtype. ValueError names what does not fit.
    """
    op, device = "patch_embed", weight.device
    if pixels.dim() != 4 or weight.dim() != 2:
        shapes = f"pixels is {tuple(pixels.shape)}, weight is {tuple(weight.shape)}"
        refuse(op, f"{shapes}: expected [B, C, H, W] and [D, C * patch * patch]")
    B, C, H, W = pixels.shape
    D, K = weight.shape
    if K != C * patch * patch:
        refuse(op, f"weight is {tuple(weight.shape)}, expected [D, {C * patch * patch}]")
    if H % patch or W % patch or H * W == 0:
        refuse(op, f"{H} x {W} pixels, expected a multiple of {patch}")
    GH, GW = H // patch, W // patch
    uint8 = pixels.dtype == torch.uint8
    if pixels.device != device or not (uint8 or pixels.dtype == weight.dtype):
        found, wanted = f"{pixels.dtype} on {pixels.device}", f"uint8 or {weight.dtype} on {device}"
        refuse(op, f"pixels are {found}, expected {wanted}")
    check_tensor(op, "weight", weight, (D, K), device)
    check_tensor(op, "bias", bias, (D,), device)
    check_tensor(op, "pos", pos, (GH * GW, D), device, weight.dtype)
    if prefix is not None:
        check_tensor(op, "prefix", prefix, (len(prefix), D), device, weight.dtype)
    if sum((n - 1) * stride for n, stride in zip((C, H, W), pixels.stride()[1:])) >= 2**31:
        refuse(op, f"an image with strides {pixels.stride()} spans over 2^31 values")

    y = torch.empty(_shape(pixels, weight, prefix, patch), dtype=weight.dtype, device=weight.device)
    if y.numel() == 0:
        return y
    gpu = gpu or gpu_of(pixels.device)
    config = launch_config(B * GH * GW, D, weight.element_size(), gpu)
    R = y.shape[1] - GH * GW
    tiles_m = cdiv(B * GH * GW, config["BLOCK_M"]) + cdiv(B * R, config["BLOCK_M"])
    weight, bias, prefix, pos = (
        t if t is None else t.contiguous() for t in (weight, bias, prefix, pos)
    )
    _patch_embed_kernel[(tiles_m * cdiv(D, config["BLOCK_N"]),)](
        pixels, weight, bias, prefix if R else None, pos, y, B, GH, GW, D, *pixels.stride(),
        K=K, P=patch, R=R, UINT8=uint8, PRECISION=fp32_precision(),
        **config, **dependent(gpu), **COMPILE_OPTIONS,
    )  # fmt: skip
    return y


def _fake(pixels, weight, bias, prefix, pos, patch: int) -> Tensor:
    return weight.new_empty(_shape(pixels, weight, prefix, patch))


patch_embed = operator(
    "patch_embed(Tensor pixels, Tensor weight, Tensor? bias, Tensor? prefix, Tensor? pos, int patch) -> Tensor",
    launch,
    _fake,
)
