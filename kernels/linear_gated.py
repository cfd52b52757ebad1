"""y = act(x Wg^T + bg) * (x Wu^T + bu): the first half of a gated MLP (SwiGLU with silu) in one launch, sums in fp32.

Shazeer 2020, "GLU Variants Improve Transformer" (arXiv:2002.05202), equation 6. x [M, K], Wg and Wu [F, K].

4 M F K operations, and s (M K + 2 F K + M F) bytes for values of s bytes: x and both weights are read once, y is
written once. As one product 2 F wide and a pass behind it, that 2 F-wide result is written and read again, 4 s M F
bytes more: for 64 images in DINOv2-giant (M = 16448, F = 4096) in bf16 539 MB, beside the 135 MB that are written here.

A program computes the same columns of both products: a tile of x and one of each weight are loaded for a step along K,
two accumulators are summed up side by side, and what leaves the registers is their product. The tile is that of a
`linear` that is 2 F wide, its columns shared out between gate and up: two 128 x 64 accumulators take the registers, the
shared memory and the matrix unit's time of one 128 x 128, so the same model of clocks chooses (linear_tiles.py). The
store is half as wide, as one of `linear`'s two column slices is.

The two weights are two tensors or the halves of one: nothing is copied.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import linear_tiles
from .activations import activation_form, activation_ref
from .dependent import options as dependent
from .dependent import prefetch, wait
from .launch import COMPILE_OPTIONS, operator
from .linear import describable, fp32_precision
from .linear_tiles import Config
from .operators import check_tensor, refuse, rows
from .tuning import Gpu, cdiv, gpu_of


def linear_gated_ref(x, gate, up, gate_bias, up_bias, activation) -> Tensor:
    """The definition; tests evaluate it in float64."""
    g, u = x @ gate.T, x @ up.T
    g = g if gate_bias is None else g + gate_bias
    u = u if up_bias is None else u + up_bias
    return activation_ref(g, activation) * u


def launch_config(
    M: int, F: int, K: int, itemsize: int, descriptors: bool, gpu: Gpu, aligned: bool = True
) -> Config:
    """The tile of the fewest clocks; block_n counts the columns of gate and of up. Pure.

    Rows that are not `aligned` take an address a value, and three matrices of addresses half the step.
    """
    c = linear_tiles.launch_config(M, 2 * F, K, itemsize, descriptors, gpu, aligned)
    return c if aligned else replace(c, block_k=32)


def misfit(c: Config) -> str:
    """Why a configuration is not for a product of two, or ""."""
    if c.library:
        return "cuBLAS has no product of two"
    if c.splits > 1:
        return f"K in {c.splits} parts would be multiplied before it is summed up"
    if c.flatten:
        return "loads that run ahead into the next tile serialise wgmma here"
    return f"{c.block_n} columns are too few for gate and up" if c.block_n < 32 else ""


@triton.jit
def _product(
    gate, up,  # [BLOCK_M, BLOCK_F] fp32
    offs_f, F, gate_bias_ptr, up_bias_ptr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    inside = offs_f < F
    if gate_bias_ptr is not None:
        gate += tl.load(gate_bias_ptr + offs_f, mask=inside, other=0.0).to(tl.float32)[None, :]
    if up_bias_ptr is not None:
        up += tl.load(up_bias_ptr + offs_f, mask=inside, other=0.0).to(tl.float32)[None, :]
    return ACTIVATION(gate) * up


@triton.jit
def gated_descriptor_kernel(
    x_desc,  # [M, K] in boxes [BLOCK_M, BLOCK_K]
    gate_desc, up_desc,  # [F, K] in boxes [BLOCK_F, BLOCK_K]
    gate_ptr, up_ptr,  # the same with PDL, rows stride_gf and stride_uf apart, or None
    y_desc,  # [M, F] in boxes [BLOCK_M, BLOCK_F]
    gate_bias_ptr, up_bias_ptr,  # [F] or None
    M, F, K, stride_gf, stride_uf,
    ACTIVATION: tl.constexpr, PDL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_f = tl.cdiv(F, BLOCK_F)
    tiles = tl.cdiv(M, BLOCK_M) * tiles_f
    if PDL:
        first = tl.program_id(0) % tiles_f * BLOCK_F + tl.arange(0, BLOCK_F)
        prefetch(gate_ptr, first, F, stride_gf, 0, K)
        prefetch(up_ptr, first, F, stride_uf, 0, K)
    wait(PDL)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = (tile // tiles_f) * BLOCK_M
        col = (tile % tiles_f) * BLOCK_F
        gate = tl.zeros((BLOCK_M, BLOCK_F), dtype=tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_F), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            # boxes that reach past M, F or K arrive with zeros
            x = x_desc.load([row, k])
            gate = tl.dot(x, gate_desc.load([col, k]).T, gate)
            up = tl.dot(x, up_desc.load([col, k]).T, up)
        offs_f = col + tl.arange(0, BLOCK_F)
        y = _product(gate, up, offs_f, F, gate_bias_ptr, up_bias_ptr, ACTIVATION)
        y_desc.store([row, col], y.to(y_desc.dtype))


@triton.jit
def gated_pointer_kernel(
    x_ptr,  # [M, K], rows stride_xm apart, last axis contiguous
    gate_ptr,  # [F, K], rows stride_gf apart, last axis contiguous
    up_ptr,  # [F, K], rows stride_uf apart, last axis contiguous
    y_ptr,  # [M, F], contiguous
    gate_bias_ptr, up_bias_ptr,  # [F] or None
    M, F, K, stride_xm, stride_gf, stride_uf,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, EVEN_K: tl.constexpr, PDL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    wait(PDL)
    tiles_f = tl.cdiv(F, BLOCK_F)
    row = (tl.program_id(0) // tiles_f) * BLOCK_M
    col = (tl.program_id(0) % tiles_f) * BLOCK_F
    offs_m = row.to(tl.int64) + tl.arange(0, BLOCK_M)
    offs_f = col + tl.arange(0, BLOCK_F)
    offs_k = tl.arange(0, BLOCK_K)
    # rows past the end read the last row again and are not stored
    x_ptrs = x_ptr + tl.minimum(offs_m, M - 1)[:, None] * stride_xm + offs_k[None, :]
    columns = tl.minimum(offs_f, F - 1).to(tl.int64)[None, :]
    gate_ptrs = gate_ptr + columns * stride_gf + offs_k[:, None]
    up_ptrs = up_ptr + columns * stride_uf + offs_k[:, None]
    gate = tl.zeros((BLOCK_M, BLOCK_F), dtype=tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_F), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs)
            g = tl.load(gate_ptrs)
            u = tl.load(up_ptrs)
        else:
            inside = offs_k < K - k
            x = tl.load(x_ptrs, mask=inside[None, :], other=0.0)
            g = tl.load(gate_ptrs, mask=inside[:, None], other=0.0)
            u = tl.load(up_ptrs, mask=inside[:, None], other=0.0)
        gate = tl.dot(x, g, gate, input_precision=PRECISION)
        up = tl.dot(x, u, up, input_precision=PRECISION)
        x_ptrs += BLOCK_K
        gate_ptrs += BLOCK_K
        up_ptrs += BLOCK_K
    y = _product(gate, up, offs_f, F, gate_bias_ptr, up_bias_ptr, ACTIVATION)
    mask = (offs_m < M)[:, None] & (offs_f < F)[None, :]
    y_ptrs = y_ptr + offs_m[:, None] * F + offs_f[None, :]
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=mask)


def launch(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    gpu: Gpu | None = None,
    config: Config | None = None,
) -> Tensor:
    """x [..., K], gate and up [F, K], their biases [F] -> [..., F] in x.dtype.

    x, gate and up share a dtype; the biases may be of another one. ValueError names what does not
    fit. `gpu` and `config` override the device's own, for tests and for compiling without one.
    """
    op = "linear_gated"
    if x.dim() == 0 or gate.dim() != 2 or not x.shape[-1] == gate.shape[1] > 0:
        shapes = f"x is {tuple(x.shape)}, gate is {tuple(gate.shape)}"
        refuse(op, f"{shapes}: expected [..., K], [F, K]")
    F, K = gate.shape
    check_tensor(op, "x", x, x.shape, x.device)
    check_tensor(op, "gate", gate, (F, K), x.device, x.dtype)
    check_tensor(op, "up", up, (F, K), x.device, x.dtype)
    check_tensor(op, "gate_bias", gate_bias, (F,), x.device)
    check_tensor(op, "up_bias", up_bias, (F,), x.device)
    act = activation_form(activation, x.dtype)
    y = torch.empty((*x.shape[:-1], F), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    x2, gate, up = rows(x), rows(gate), rows(up)
    M = len(x2)
    y2 = y.view(M, F)
    gate_bias, up_bias = (t if t is None else t.contiguous() for t in (gate_bias, up_bias))
    gpu = gpu or gpu_of(x.device)
    descriptors = gpu.bulk_copies and describable(x2, gate, up, y2)
    # to 16 values: of a smaller alignment Triton knows nothing
    aligned = all(t.stride(0) % 16 == 0 and t.data_ptr() % 16 == 0 for t in (x2, gate, up))
    c = config or launch_config(M, F, K, x.element_size(), descriptors, gpu, aligned)
    if why := misfit(c):
        refuse(op, f"{why}: {c}")
    block_f = c.block_n // 2
    count = cdiv(M, c.block_m) * cdiv(F, block_f)
    shared = dict(
        ACTIVATION=act, BLOCK_M=c.block_m, BLOCK_F=block_f, BLOCK_K=c.block_k,
        num_warps=c.num_warps, num_stages=c.num_stages, **dependent(gpu), **COMPILE_OPTIONS,
    )  # fmt: skip
    if descriptors:
        box = [block_f, c.block_k]
        gated_descriptor_kernel[(min(count, gpu.sms * c.blocks_per_sm),)](
            TensorDescriptor.from_tensor(x2, [c.block_m, c.block_k]),
            TensorDescriptor.from_tensor(gate, box),
            TensorDescriptor.from_tensor(up, box),
            *((gate, up) if shared["PDL"] else (None, None)),
            TensorDescriptor.from_tensor(y2, [c.block_m, block_f]),
            gate_bias, up_bias, M, F, K, gate.stride(0), up.stride(0),
            maxnreg=c.registers, **shared,
        )  # fmt: skip
    else:
        gated_pointer_kernel[(count,)](
            x2, gate, up, y2, gate_bias, up_bias,
            M, F, K, x2.stride(0), gate.stride(0), up.stride(0),
            # left to itself ptxas takes 128 registers: 128 rows do with that, smaller tiles spill
            maxnreg=None if c.block_m == 128 else c.registers,
            PRECISION=fp32_precision(), EVEN_K=K % c.block_k == 0, **shared,
        )  # fmt: skip
    return y


def _fake(x, gate, up, gate_bias, up_bias, activation) -> Tensor:
    return x.new_empty((*x.shape[:-1], gate.shape[0]))


linear_gated = operator(
    "linear_gated(Tensor x, Tensor gate, Tensor up, Tensor? gate_bias, Tensor? up_bias,"
    " str activation) -> Tensor",
    launch,
    _fake,
)
