"""The host side of the Gluon matrix products: their arguments checked and described.

What these kernels cannot take is a ValueError and never a slower path: a candidate that quietly ran
something else would be measured as what it is not.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from vit_fast.kernels.activations import activation_form
from vit_fast.kernels.operators import check_tensor, refuse, rows
from vit_fast.kernels.tuning import Gpu, gpu_of

GLUON_DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


@dataclass(frozen=True)
class Gemm:
    """Arguments as a kernel takes them; `descriptors` are x, weight, y and the residual or None."""

    M: int
    N: int
    K: int
    y: Tensor
    descriptors: tuple[TensorDescriptor | None, ...]
    bias: Tensor | None
    scale: Tensor | None
    activation: triton.JITFunction
    gpu: Gpu


def describe(t: Tensor, box: list[int]) -> TensorDescriptor:
    """t in boxes of these sizes, swizzled in shared memory as the matrix unit reads them."""
    layout = gl.NVMMASharedLayout.get_default_for(box, GLUON_DTYPES[t.dtype])
    return TensorDescriptor.from_tensor(t, box, layout)


def check_gpu(op: str, device: torch.device, gpu: Gpu | None) -> Gpu:
    """`gpu`, else the one behind `device`. ValueError unless it is of compute capability 9.0."""
    if gpu is None and device.type != "cuda":
        refuse(op, f"tensors are on {device}: this kernel runs on a GPU only")
    gpu = gpu or gpu_of(device)
    if gpu.arch != 90:
        refuse(op, f"{gpu.name} is sm_{gpu.arch}: this kernel is for sm_90 only")
    return gpu


def check_bulk(op: str, name: str, t: Tensor) -> None:
    """ValueError unless the hardware can copy boxes of t: 16-byte base and strides, a unit last stride."""
    if t.dtype not in GLUON_DTYPES:
        refuse(op, f"{name} is {t.dtype}, expected torch.bfloat16 or torch.float16")
    if t.stride(-1) != 1 or any(s % 8 or s <= 0 for s in t.stride()[:-1]):
        refuse(
            op,
            f"{name} has strides {t.stride()}: expected 1 for the last and positive multiples of 8 before it",
        )
    if t.data_ptr() % 16:
        refuse(op, f"{name} starts at {t.data_ptr():#x}, expected a multiple of 16 bytes")


def prepare(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    scale: Tensor | None,
    residual: Tensor | None,
    gpu: Gpu | None,
    block: tuple[int, int, int],
) -> Gemm:
    """x [..., K], weight [N, K], bias [N], scale [N], residual [..., N], in boxes of block_m,
    block_n, block_k; y is stored in halves of block_n.

    ValueError names what does not fit: shapes, devices, dtypes other than bf16 and fp16, K or N no
    multiple of 8, unaligned memory, a GPU that is not sm_90.
    """
    op = "candidate linear"
    if x.dim() == 0 or weight.dim() != 2 or not x.shape[-1] == weight.shape[1] > 0:
        refuse(
            op, f"x is {tuple(x.shape)}, weight is {tuple(weight.shape)}: expected [..., K], [N, K]"
        )
    gpu = check_gpu(op, x.device, gpu)
    N, K = weight.shape
    shape = (*x.shape[:-1], N)
    check_tensor(op, "weight", weight, (N, K), x.device, x.dtype)
    check_tensor(op, "bias", bias, (N,), x.device)
    check_tensor(op, "scale", scale, (N,), x.device)
    check_tensor(op, "residual", residual, shape, x.device, x.dtype)
    if K % 8 or N % 8:
        refuse(op, f"weight is {tuple(weight.shape)}: expected multiples of 8, rows of 16 bytes")
    form = activation_form(activation, x.dtype)
    y = torch.empty(shape, dtype=x.dtype, device=x.device)
    x2, w, y2 = rows(x), rows(weight), y.view(-1, N)
    r2 = None if residual is None else rows(residual)
    M = x2.shape[0]
    descriptors = ()
    if M and N:
        for name, t in (("x", x2), ("weight", w), ("residual", r2)):
            if t is not None:
                check_bulk(op, name, t)
        block_m, block_n, block_k = block
        out_box = [block_m, block_n // 2]
        descriptors = (
            describe(x2, [block_m, block_k]),
            describe(w, [block_n, block_k]),
            describe(y2, out_box),
            None if r2 is None else describe(r2, out_box),
        )
    return Gemm(
        M, N, K, y, descriptors, None if bias is None else bias.contiguous(),
        None if scale is None else scale.contiguous(), form, gpu,
    )  # fmt: skip
