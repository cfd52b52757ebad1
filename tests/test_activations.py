"""Activations through `linear` with an identity weight: what is judged is the arithmetic that a kernel emits."""

import pytest
import torch

from accuracy import assert_as_accurate
from tensors import DTYPES, f64, values

pytest.importorskip("triton")
import triton
import triton.language as tl

from vit_fast.kernels.activations import NAMES, activation_form, activation_ref, gelu_half
from vit_fast.kernels.linear import linear
from vit_fast.ops import torch_ops

pytestmark = pytest.mark.usefixtures("on_device")

RANGES = {
    "N(0, 1)": lambda: values("normal", 64, 64),
    "1e-3 N(0, 1)": lambda: values("tiny", 64, 64),
    "[-6, -3]": lambda: torch.linspace(-6, -3, 4096, dtype=torch.float64).view(64, 64),
    "[-12, 12]": lambda: torch.linspace(-12, 12, 4096, dtype=torch.float64).view(64, 64),
    "1e4 N(0, 1)": lambda: 1e4 * values("normal", 64, 64).clamp(-6, 6),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("name", NAMES)
def test_against_float64(name, kind, dtype):
    x = RANGES[kind]().to(dtype)
    eye = torch.eye(64, dtype=dtype)
    y = linear(x, eye, None, name)
    assert_as_accurate(y, activation_ref(x.double(), name), torch_ops().linear(x, eye, None, name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinity_and_nan(name, dtype):
    x = torch.zeros(16, 16, dtype=dtype)
    x[0, 0], x[1, 1], x[2, 2] = float("inf"), float("-inf"), float("nan")
    # one column at a time: 0 * inf in a product is NaN
    y = [
        linear(x[i : i + 1, i : i + 1], torch.ones(1, 1, dtype=dtype), None, name)[0, 0]
        for i in range(3)
    ]
    assert y[0] == float("inf")
    assert y[1].isnan() or y[1] == 0  # the limit is 0; x * sigmoid(x) as PyTorch computes it is NaN
    assert y[2].isnan()


def test_erf_and_tanh_are_different_functions():
    """A GELU of the wrong kind must not pass: the two differ by 4.7e-4, and each passes only as itself."""
    x, eye = values("normal", 64, 64).float(), torch.eye(64)
    for right, wrong in (("gelu", "gelu_tanh"), ("gelu_tanh", "gelu")):
        baseline = torch_ops().linear(x, eye, None, right)
        with pytest.raises(AssertionError):
            assert_as_accurate(
                linear(x, eye, None, wrong), activation_ref(*f64(x), right), baseline
            )


def test_half_form_is_only_for_half():
    assert activation_form("gelu", torch.float32) is not activation_form("gelu", torch.float16)
    assert activation_form("gelu", torch.bfloat16) is activation_form("gelu", torch.float16)


@triton.jit
def _gelu_half_kernel(x_ptr, y_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)
    tl.store(y_ptr + offs, gelu_half(tl.load(x_ptr + offs)))


def test_half_form_in_fp32():
    """Its own error, which half-precision results hide: 6.4e-7 (kernels/activations.py)."""
    x = torch.linspace(-12, 12, 1 << 16, dtype=torch.float64).float()
    y = torch.empty_like(x)
    _gelu_half_kernel[(1,)](x, y, N=x.numel())
    assert (y - activation_ref(x.double(), "gelu")).abs().max() <= 7e-7
