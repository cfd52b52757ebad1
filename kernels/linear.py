"""y = residual + scale * act(x W^T + b): a GEMM with everything elementwise in its epilogue,
accumulated in fp32.

2 M N K operations; x, W and the residual are read once from memory and y is written once (tiles
that share rows of x run side by side and meet in the L2 cache), where separate passes for the bias,
activation, LayerScale and residual would move up to 8 M N elements more. The GELU-MLP of a block is
two of these: fc1 with the activation, fc2 with the residual.

Two kernels (linear_kernels.py). Where the hardware copies boxes by descriptor (compute capability 9.x and
10.x), a persistent grid walks the tiles and the accumulator is stored in column slices, so that the
epilogue never holds a whole tile twice. Elsewhere, for fp32, and for layouts that a descriptor
cannot express, pipelined pointer loads. Where a measured table says so, cuBLAS, and the epilogue as
a pass of its own. The same kernels write partial sums for linear_norm.py, and read and write row
statistics for the folded LayerNorm of folding.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import linear_tiles
from .activations import activation_form, activation_ref
from .dependent import options as dependent
from .folding import PART
from .launch import COMPILE_OPTIONS, operator
from .linear_kernels import epilogue_kernel, linear_descriptor_kernel, linear_pointer_kernel
from .linear_tiles import Config
from .operators import check_tensor, refuse, rows
from .tuning import Gpu, cached, cdiv, dtype_name, gpu_of, tuned


def linear_ref(x, w, b=None, activation=None, scale=None, residual=None) -> Tensor:
    """The definition; tests evaluate it in float64."""
    y = x @ w.T
    y = y if b is None else y + b
    y = activation_ref(y, activation)
    y = y if scale is None else y * scale
    return y if residual is None else y + residual


def describable(*matrices: Tensor | None) -> bool:
    """Whether a descriptor can express each [rows, columns]: 16-byte aligned base and rows, half
    precision.
    """
    return all(
        t.element_size() == 2 and t.data_ptr() % 16 == 0
        and t.stride(0) % 8 == 0 and t.stride(0) > 0 and t.stride(1) == 1
        for t in matrices
        if t is not None
    )  # fmt: skip


def fp32_precision() -> str:
    """ "ieee", or "tf32" when the user has asked PyTorch for TF32 in its matrix products."""
    settings = torch.backends.cuda.matmul
    if hasattr(settings, "fp32_precision"):  # torch >= 2.9
        return "tf32" if settings.fp32_precision == "tf32" else "ieee"
    return "tf32" if settings.allow_tf32 else "ieee"


class Folded(NamedTuple):
    """LayerNorm folded into the product: see folding.py."""

    stats: Tensor  # [M, K / PART, 2] fp32, of the rows of x
    column_sums: Tensor  # [N] fp32
    eps: float


@cached
def config_for(
    M: int, N: int, K: int, dtype: torch.dtype, epilogue: str, descriptors: bool, aligned: bool, gpu: Gpu
) -> Config:  # fmt: skip
    """The measured configuration of this shape on this GPU, else the rule's."""
    measured = tuned(gpu, "linear", M=M, N=N, K=K, dtype=dtype_name(dtype), epilogue=epilogue)
    # it was measured on tensors that the best kernel for this dtype takes
    if (
        measured is not None
        and aligned
        and descriptors == (gpu.bulk_copies and dtype.itemsize == 2)
    ):
        return Config(**measured)
    return linear_tiles.launch_config(M, N, K, dtype.itemsize, descriptors, gpu, aligned)


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    gpu: Gpu | None = None,
    config: Config | None = None,
) -> Tensor:
    """x [..., K], weight [N, K], bias [N], scale [N], residual [..., N] -> [..., N] in x.dtype.

    x, weight and residual share a dtype; bias and scale may be of another one. ValueError names
    what does not fit. `gpu` and `config` override the device's own, for tests and for compiling
    without one.
    """
    check("linear", x, weight, bias, scale, residual)
    y = torch.empty((*x.shape[:-1], len(weight)), dtype=x.dtype, device=x.device)
    if y.numel():
        run(x, weight, bias, activation, scale, residual, y, gpu=gpu, config=config)
    return y


def misfit(c: Config, **_: int | str) -> str:
    """Why a configuration is not for a product whose tiles are stored as they are, or ""."""
    return f"K in {c.splits} parts is for linear_norm, which adds them up" if c.splits > 1 else ""


def check(op: str, x: Tensor, weight: Tensor, bias=None, scale=None, residual=None) -> None:
    """ValueError where the operands do not fit."""
    if x.dim() == 0 or weight.dim() != 2 or not x.shape[-1] == weight.shape[1] > 0:
        shapes = f"x is {tuple(x.shape)}, weight is {tuple(weight.shape)}"
        refuse(op, f"{shapes}: expected [..., K], [N, K]")
    N, K = weight.shape
    check_tensor(op, "x", x, x.shape, x.device)
    check_tensor(op, "weight", weight, (N, K), x.device, x.dtype)
    check_tensor(op, "bias", bias, (N,), x.device)
    check_tensor(op, "scale", scale, (N,), x.device)
    check_tensor(op, "residual", residual, (*x.shape[:-1], N), x.device, x.dtype)


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    scale: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    folded: Folded | None = None,
    y_stats: Tensor | None = None,
    gpu: Gpu | None = None,
    config: Config | None = None,
) -> None:
    """Writes y, and y_stats [M, N / PART, 2] where it is given.

    The operands are known to fit, and none is empty.
    """
    x2, w, r2 = rows(x), rows(weight), None if residual is None else rows(residual)
    (M, K), N = x2.shape, len(w)
    y2 = y.view(M, N)
    gpu = gpu or gpu_of(x.device)
    descriptors = gpu.bulk_copies and describable(x2, w, y2, r2)
    aligned = x2.stride(0) % 8 == 0 and w.stride(0) % 8 == 0
    if config is None:
        epilogue = epilogue_name(activation, scale, residual)
        config = config_for(M, N, K, x.dtype, epilogue, descriptors, aligned, gpu)
    c, act = config, activation_form(activation, x.dtype)
    if why := misfit(c):
        refuse("linear", f"{why}: {c}")
    bias, scale = (t if t is None else t.contiguous() for t in (bias, scale))
    r_stride = 0 if r2 is None else r2.stride(0)
    early = dependent(gpu)
    if c.library and folded is None and y_stats is None:
        _library(x2, w, bias, y2)
        if activation is not None or scale is not None or residual is not None:
            grid = (cdiv(M, c.block_m), cdiv(N, c.block_n))
            epilogue_kernel[grid](
                y2, r2, scale, M, N, r_stride, ACTIVATION=act, BLOCK_M=c.block_m, BLOCK_N=c.block_n,
                num_warps=c.num_warps, **early, **COMPILE_OPTIONS,
            )  # fmt: skip
        return
    stats, sums, eps = folded or (None, None, 0.0)
    parts = 1 if stats is None else stats.shape[1]
    launch_tiles(
        x2, w, c, descriptors, gpu, y2, r2, bias, scale, stats, sums, y_stats, None, eps, 
        ACTIVATION=act, PARTS=parts, PART=PART,
    )  # fmt: skip


def launch_tiles(
    x: Tensor, w: Tensor, c: Config, descriptors: bool, gpu: Gpu,
    y: Tensor | None, residual: Tensor | None, bias, scale, stats, sums, y_stats, partial, eps, **constants,
) -> None:  # fmt: skip
    """Either kernel on matrices x [M, K] and w [N, K]: by descriptor or by pointer."""
    (M, K), N = x.shape, len(w)
    count = cdiv(M, c.block_m) * cdiv(N, c.block_n)
    share = cdiv(cdiv(K, c.splits), c.block_k) * c.block_k
    shared = dict(
        BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_K=c.block_k, **constants, **dependent(gpu)
    )
    options = dict(num_warps=c.num_warps, num_stages=c.num_stages, **COMPILE_OPTIONS)
    rest = (bias, scale, stats, sums, y_stats, partial, M, N, K, share, eps)
    if descriptors:
        box = [c.block_m, c.block_n // c.slices]
        linear_descriptor_kernel[min(count, gpu.sms * c.blocks_per_sm), cdiv(K, share)](
            TensorDescriptor.from_tensor(x, [c.block_m, c.block_k]),
            TensorDescriptor.from_tensor(w, [c.block_n, c.block_k]),
            w if shared["PDL"] else None,
            None if y is None else TensorDescriptor.from_tensor(y, box),
            None if residual is None else TensorDescriptor.from_tensor(residual, box),
            *rest, w.stride(0), SLICES=c.slices, FLATTEN=c.flatten, maxnreg=c.registers, **shared, **options,
        )  # fmt: skip
    else:
        linear_pointer_kernel[count, cdiv(K, share)](
            x, w, y, residual, *rest, x.stride(0), w.stride(0), 0 if residual is None else residual.stride(0),
            # left to itself ptxas takes 128 registers where fp32 needs a few more, and spills
            maxnreg=c.registers if x.element_size() == 4 else None,
            PRECISION=fp32_precision(), EVEN_K=K % c.block_k == 0, **shared, **options,
        )  # fmt: skip


def _library(x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """y = x w^T + bias by cuBLAS."""
    if bias is None or bias.dtype != x.dtype:
        torch.mm(x, w.T, out=y)
        if bias is not None:
            y += bias
    else:
        torch.addmm(bias, x, w.T, out=y)


def epilogue_name(activation: str | None, scale: Tensor | None, residual: Tensor | None) -> str:
    """ "bias", "gelu", "scale+residual", ...: what a measured table tells epilogues apart by."""
    parts = activation, "scale" if scale is not None else "", "residual" if residual is not None else ""  # fmt: skip
    return "+".join(filter(None, parts)) or "bias"


def _fake(x, weight, bias=None, activation=None, scale=None, residual=None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


linear = operator(
    "linear(Tensor x, Tensor weight, Tensor? bias=None, str? activation=None, Tensor? scale=None,"
    " Tensor? residual=None) -> Tensor",
    launch,
    _fake,
)
