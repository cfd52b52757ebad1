"""Linear layers on a CPU through oneDNN, on weights packed for it once.

PyTorch multiplies fp32 matrices on a CPU with MKL, which leaves part of an AVX-512 processor idle (a little on
some, more than half on others); oneDNN does not, and takes the activation into the product. Its entry points are
private to PyTorch, `torch.ops.mkldnn._reorder_linear_weight` and `_linear_pointwise`, the ones that Inductor
compiles to. Their fused residual ("add") is not used: it costs 3 ms a call, whatever the size, and a separate
addition 0.03 to 0.5 (benchmarks/LOG.md).

In fp32 oneDNN adds up 1024 to 2048 products in one go, with more than twice the rounding error of MKL's sums, which is
more than the accuracy rule allows. Weights of that many channels are packed in two halves, and multiplied in two
products.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_fast.kernels.operators import check_tensor, define, refuse

DTYPES = (torch.float32, torch.bfloat16)
# activation -> _linear_pointwise's attribute and algorithm
FUSED = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
}
# channels of a product in fp32 that is made of two
TOO_LONG = range(1025, 2048)
# the row count a weight is packed for; the layout is the same for any (benchmarks/LOG.md)
ROWS = 1024


def why_not(dtype: torch.dtype) -> str:
    """Why this machine does not run these operations in `dtype`, or ""."""
    if dtype not in DTYPES:
        return f"oneDNN linear layers are for fp32 and bf16, the model is {dtype}"
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return "oneDNN is missing from this PyTorch, or turned off"
    capability = torch.backends.cpu.get_cpu_capability()
    if capability != "AVX512":
        return f"oneDNN linear layers are used with AVX512, where they were measured; this CPU runs {capability}"
    for name in ("_reorder_linear_weight", "_linear_pointwise"):
        if not hasattr(torch.ops.mkldnn, name):
            return f"torch {torch.__version__} has no torch.ops.mkldnn.{name}"
    return ""


class Halves(NamedTuple):
    """A weight [N, K] in oneDNN's layout, the first K / 2 channels and the others, of bytes as a tensor has them."""

    lower: Tensor
    upper: Tensor

    @property
    def nbytes(self) -> int:
        return self.lower.nbytes + self.upper.nbytes

    @property
    def is_cuda(self) -> bool:
        return False


def pack(weight: Tensor) -> Tensor | Halves:
    """weight [N, K] -> the same in oneDNN's layout: an opaque tensor that is neither copied, moved nor pickled.

    Two of them, of K / 2 channels each, where linear() multiplies twice.
    """
    if weight.dtype == torch.float32 and weight.shape[1] in TOO_LONG:
        return Halves(*(_reordered(half) for half in weight.tensor_split(2, dim=1)))
    return _reordered(weight)


def _reordered(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """residual + scale * activation(x @ weight^T + bias), as Ops.linear; weight [N, K], or what pack() made of it.

    x [..., K] in fp32 or bf16 -> [..., N]. ValueError names what does not fit. A gradient is an error.
    """
    name, (N, K) = "onednn_linear", weight.shape
    if activation not in FUSED and activation != "quick_gelu":
        refuse(name, f"activation {activation!r} is not known, expected one of {[*FUSED]}")
    if x.dtype not in DTYPES:
        refuse(name, f"x is {x.dtype}, expected {' or '.join(map(str, DTYPES))}")
    if x.shape[-1] != K:
        refuse(name, f"x is {tuple(x.shape)}, weight {tuple(weight.shape)}: expected x [..., {K}]")
    check_tensor(name, "weight", weight, (N, K), x.device, x.dtype)
    check_tensor(name, "bias", bias, (N,), x.device, x.dtype)
    check_tensor(name, "scale", scale, (N,), x.device, x.dtype)
    check_tensor(name, "residual", residual, (*x.shape[:-1], N), x.device, x.dtype)
    attribute, algorithm = FUSED.get(activation, FUSED[None])
    bias = None if bias is None else bias.contiguous()  # its strides are not looked at
    y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, attribute, [], algorithm)
    if activation == "quick_gelu":
        _quick_gelu_(y)
    return _added(y, scale, residual)


def _added(y: Tensor, scale: Tensor | None, residual: Tensor | None) -> Tensor:
    """residual + scale * y, in y's memory"""
    if scale is None:
        return y if residual is None else y.add_(residual)
    return y.mul_(scale) if residual is None else torch.addcmul(residual, y, scale, out=y)


def _activate_(y: Tensor, activation: str | None) -> None:
    """In place, as FUSED has them."""
    match activation:
        case "gelu" | "gelu_tanh":
            torch.ops.aten.gelu_(y, approximate=FUSED[activation][1])
        case "quick_gelu":
            _quick_gelu_(y)
        case "silu":
            F.silu(y, inplace=True)


def _quick_gelu_(y: Tensor) -> None:
    """y * sigmoid(1.702 y), in place."""
    if y.dtype == torch.float32:
        # without memory beside y's, which costs more than the arithmetic (benchmarks/LOG.md)
        F.silu(y.mul_(1.702), inplace=True).mul_(1 / 1.702)
    else:  # in bf16 that would round once more, and gain nothing
        y.mul_(torch.sigmoid(1.702 * y))


def _fake(x, weight, bias=None, activation=None, scale=None, residual=None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


onednn_linear = define(
    "onednn_linear(Tensor x, Tensor weight, Tensor? bias=None, str? activation=None, Tensor? scale=None, "
    "Tensor? residual=None) -> Tensor",
    {"CPU": _linear, "MkldnnCPU": _linear},
    _fake,
)


def linear(
    x: Tensor,
    weight: Tensor | Halves,
    bias: Tensor | None = None,
    activation: str | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """onednn_linear, of whatever pack() made of the weight."""
    if not isinstance(weight, Halves):
        return onednn_linear(x, weight, bias, activation, scale, residual)
    name, (N, half) = "onednn_linear", weight.lower.shape
    K = half + weight.upper.shape[1]
    if activation not in FUSED and activation != "quick_gelu":
        refuse(name, f"activation {activation!r} is not known, expected one of {[*FUSED]}")
    if x.shape[-1] != K:
        refuse(name, f"x is {tuple(x.shape)}, weight {(N, K)}: expected x [..., {K}]")
    check_tensor(name, "scale", scale, (N,), x.device, x.dtype)
    check_tensor(name, "residual", residual, (*x.shape[:-1], N), x.device, x.dtype)
    y = onednn_linear(x[..., :half], weight.lower, bias)
    y = onednn_linear(x[..., half:], weight.upper, residual=y)
    _activate_(y, activation)
    return _added(y, scale, residual)
