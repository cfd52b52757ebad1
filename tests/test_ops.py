"""torch_ops(), the definition of each operation, against plain arithmetic in float64."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from accuracy import assert_as_accurate
from models import images, needs_triton
from vit_fast import cpu_ops, onednn, onednn_attention, torch_ops, triton_ops
from vit_fast.ops import choose_ops, not_for_kernels
from vit_fast.spec import ACTIVATIONS

OPS = torch_ops()
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def activated(name: str | None, x: Tensor) -> Tensor:
    """As in the papers: Hendrycks and Gimpel 2016 (arXiv:1606.08415), equation 1 and section 2."""
    if name is None:
        return x
    return (
        x
        * {
            "gelu": lambda: (1 + torch.erf(x / math.sqrt(2))) / 2,
            "gelu_tanh": lambda: (
                (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
            ),
            "quick_gelu": lambda: torch.sigmoid(1.702 * x),
            "silu": lambda: torch.sigmoid(x),
        }[name]()
    )


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_linear(activation):
    """residual + scale * activation(x W^T + b), with and without each."""
    x, w, b, scale, residual = (
        randn(2, 5, 16),
        randn(24, 16, seed=1) / 4,
        randn(24, seed=2),
        randn(24, seed=3),
        randn(2, 5, 24, seed=4),
    )
    for bias, s, r in itertools.product((None, b), (None, scale), (None, residual)):
        expected = activated(activation, x @ w.mT + (0 if bias is None else bias))
        expected = (0 if r is None else r) + (1 if s is None else s) * expected
        y = OPS.linear(x, w, bias, activation, s, r)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


def test_attention():
    q, k, v = (randn(2, n, 3, 8, seed=n) for n in (4, 7, 7))
    weights = torch.softmax(0.3 * torch.einsum("bqhd,bkhd->bhqk", q, k), -1)
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 4, 24)
    torch.testing.assert_close(OPS.attention(q, k, v, 0.3), expected, rtol=0, atol=1e-12)


def test_layer_norm():
    x, w, b = randn(2, 5, 16), randn(16, seed=1), randn(16, seed=2)
    y = (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, correction=0, keepdim=True) + 0.1
    ).sqrt() * w + b
    torch.testing.assert_close(OPS.layer_norm(x, w, b, 0.1), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [None, torch.float32, "same"], ids=str)
@pytest.mark.parametrize("pixels", [torch.uint8, "same"], ids=str)
def test_patch_embed(dtype, bias, pixels):
    """A convolution, positions added, behind finished rows; of bytes, 128 is subtracted first."""
    B, C, H, W, D, p = 2, 3, 12, 20, 32, 4
    x = images(B, C, H, W, dtype=torch.uint8 if pixels == torch.uint8 else dtype)
    weight = (randn(D, C * p * p) / (500 if pixels == torch.uint8 else 7)).to(dtype)
    b = None if bias is None else randn(D, seed=1).to(dtype if bias == "same" else bias)
    prefix, pos = randn(2, D, seed=2).to(dtype), randn(15, D, seed=3).to(dtype)

    def reference(dtype: torch.dtype) -> Tensor:
        shifted = x.to(dtype) - 128 if pixels == torch.uint8 else x.to(dtype)
        filters = weight.to(dtype).view(D, C, p, p)
        y = torch.nn.functional.conv2d(
            shifted, filters, None if b is None else b.to(dtype), stride=p
        )
        return torch.cat((prefix.to(dtype).expand(B, -1, -1), y.flatten(2).mT + pos.to(dtype)), 1)

    y = OPS.patch_embed(x, weight, b, prefix, pos, p)
    assert torch.equal(y[:, :2], prefix.expand(B, -1, -1))
    assert_as_accurate(y, reference(torch.float64), reference(dtype))
    bare = OPS.patch_embed(x, weight, b, None, None, p)
    torch.testing.assert_close(bare + pos, y[:, 2:], rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_the_table_for_a_cpu_says_why(monkeypatch):
    for dtype in DTYPES:
        ops, why = choose_ops(torch.device("cpu"), dtype)
        assert ops is (torch_ops() if onednn.why_not(dtype) else cpu_ops())
        assert onednn.why_not(dtype) in why
        if ops is cpu_ops():
            attention = onednn_attention.why_not(dtype)
            assert (f"PyTorch's attention: {attention}" if attention else "oneDNN attention") in why
    monkeypatch.setattr(onednn_attention, "_trial", lambda dtype: "for this test")
    if not onednn.why_not(torch.float32):
        ops, why = choose_ops(torch.device("cpu"))
        assert ops is cpu_ops()
        assert "PyTorch's attention: for this test" in why
    ops, why = choose_ops(torch.device("cpu"), cpu="plain")
    assert ops is torch_ops()
    assert "plain" in why


@needs_triton
def test_one_operation_of_the_kernels_among_those_of_pytorch():
    """An ablation: nothing else changes, and it has no gradient as soon as one operation has none."""
    mixed = replace(triton_ops(), attention=OPS.attention)
    assert not mixed.differentiable
    assert (mixed.attention, mixed.linear) == (OPS.attention, triton_ops().linear)


def test_models_that_the_kernels_do_not_take():
    assert not_for_kernels(torch.bfloat16, 128) == ""
    assert "torch.float64" in not_for_kernels(torch.float64, 64)
    assert "160" in not_for_kernels(torch.float32, 160)
