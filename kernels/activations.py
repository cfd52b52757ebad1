"""Activations in fp32 registers, each beside its definition.

gelu        x * Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2       (Hendrycks & Gimpel 2016, eq. 1)
gelu_tanh   x * (1 + tanh(u)) / 2, u = sqrt(2/pi) (x + 0.044715 x^3)     (the same paper, section 2)
quick_gelu  x * sigmoid(1.702 x)                                  (the same paper; OpenAI CLIP)
silu        x * sigmoid(x)                                        (the same paper)

(1 + tanh(u)) / 2 = sigmoid(2u) is exact algebra and has no cancellation for negative u.

`gelu` has two forms. The library erf is accurate to the last bits of fp32, but it branches, and in
the epilogue of a 128-wide matrix tile it spills registers. For fp16 and bf16 results `gelu_half`
writes Phi(-|x|) as the exponential of a polynomial, Phi(-z) = 2^P(z), so that

    gelu(x) = relu(x) - |x| 2^P(|x|)

costs five FMAs and one exponential. P is a degree-5 fit for z in [0, 6]; the result is at most
6.4e-7 from the true value, which is under a tenth of half a unit of bf16. Near zero the relative
error is 2.6e-5: too much for fp32, which takes erf.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_TWO_SQRT_2_OVER_PI = tl.constexpr(1.5957691216057308)
_LOG2_E = tl.constexpr(1.4426950408889634)


def activation_ref(x: Tensor, name: str | None) -> Tensor:
    """x [...] -> [...]: the definitions; tests evaluate them in float64."""
    match name:
        case None:
            return x
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        case "silu":
            return F.silu(x)
    raise ValueError(f"activation is {name!r}; known: {', '.join(NAMES)}, or None")


@triton.jit
def identity(x):
    return x


@triton.jit
def _times_sigmoid(x, z):
    return x / (1.0 + tl.exp2(z * -_LOG2_E))


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * _SQRT_HALF))


@triton.jit
def gelu_half(x):
    z = tl.abs(x)
    p = -0.0004732940 * z + 0.0070844614
    p = p * z - 0.0518271700
    p = p * z - 0.4599926472
    p = p * z - 1.1507877111
    p = p * z - 1.000037670
    # 2^p is 0 at infinity: the bound keeps inf * 0 out, and a NaN still comes through p
    return tl.maximum(x, 0.0) - tl.minimum(z, 16.0) * tl.exp2(p)


@triton.jit
def gelu_tanh(x):
    return _times_sigmoid(x, (x + 0.044715 * x * x * x) * _TWO_SQRT_2_OVER_PI)


@triton.jit
def quick_gelu(x):
    return _times_sigmoid(x, x * 1.702)


@triton.jit
def silu(x):
    # exp(-x) = 2^n exp(r): the product -x log2(e) alone would round away |x| units of the result
    z = tl.minimum(tl.maximum(-x, -126.0), 126.0)
    n = tl.floor(z * _LOG2_E + 0.5)
    r = (z - n * 0.693359375) + n * 2.12194440e-4  # ln 2 in two parts, n times the first is exact
    return x / (1.0 + tl.exp2(n) * tl.exp2(r * _LOG2_E))


@triton.jit
def silu_half(x):
    return _times_sigmoid(x, x)


_FORMS = {
    "gelu": (gelu, gelu_half),
    "gelu_tanh": (gelu_tanh, gelu_tanh),
    "quick_gelu": (quick_gelu, quick_gelu),
    "silu": (silu, silu_half),
}
NAMES = tuple(_FORMS)


def activation_form(name: str | None, dtype: torch.dtype) -> triton.JITFunction:
    """The @triton.jit function for results of `dtype`. ValueError for a name that is not in NAMES."""
    if name is None:
        return identity
    if name not in _FORMS:
        raise ValueError(f"activation is {name!r}; known: {', '.join(NAMES)}, or None")
    exact, half = _FORMS[name]
    return exact if dtype == torch.float32 else half
