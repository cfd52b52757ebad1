"""The kernels as PyTorch operators: shapes without running, gradients, torch.compile, devices."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
from tensors import DEVICE
from vit_fast.kernels.attention import attention
from vit_fast.kernels.folding import row_statistics
from vit_fast.kernels.layer_norm import layer_norm
from vit_fast.kernels.linear import launch as launch_linear
from vit_fast.kernels.linear import linear
from vit_fast.kernels.linear_folded import linear_folded, linear_statistics
from vit_fast.kernels.linear_gated import linear_gated
from vit_fast.kernels.linear_norm import linear_norm
from vit_fast.kernels.patch_embed import patch_embed

pytestmark = pytest.mark.usefixtures("on_device")

N, D = 5, 32
with torch.device(DEVICE):
    X, QKV = torch.randn(2, N, D), torch.randn(2, N, 3, 2, 16)
    Q, K, V = QKV.unbind(2)
    W, B, R = torch.randn(48, D), torch.randn(48), torch.randn(2, N, 48)
    PIXELS, FILTERS = torch.randn(2, 3, 16, 24), torch.randn(D, 192)
    BYTES = torch.zeros(2, 3, 16, 24, dtype=torch.uint8)
    HALF = X.half()
    SAMPLES = {
        "layer_norm": (layer_norm, (X, torch.ones(D), torch.zeros(D), 1e-6)),
        "linear": (linear, (X, W, B, "gelu", B, R)),
        "linear, bare": (linear, (X[:, :1], W)),
        "attention": (attention, (Q, K, V, 0.25)),
        "attention of one token": (attention, (Q[:, :1], K, V, 0.25)),
        "linear_norm": (linear_norm, (X, W, B, None, R, B, B, 1e-6)),
        "linear_gated": (linear_gated, (X, W[:24], W[24:], B[:24], None, "silu")),
        "linear_statistics": (linear_statistics, (X, W, B, B, R)),
        "linear_folded": (
            linear_folded,
            (HALF, row_statistics(HALF), W.half(), B, B, 1e-6, "gelu"),
        ),
        "row_statistics": (row_statistics, (X,)),
        "patch_embed": (patch_embed, (PIXELS, FILTERS, X[0, 0], X[0, :1], torch.randn(6, D), 8)),
        "patch_embed, uint8": (patch_embed, (BYTES, FILTERS, None, None, None, 8)),
    }


def results(found):
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name):
    op, args = SAMPLES[name]
    torch.library.opcheck(op, args)


@pytest.mark.parametrize("name", SAMPLES)
def test_fake_has_the_shape_of_the_result(name):
    op, args = SAMPLES[name]
    found = op(*args)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = op(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args))
    for y, f in zip(results(found), results(fake), strict=True):
        assert (f.shape, f.dtype, f.stride()) == (y.shape, y.dtype, y.stride())


@pytest.mark.parametrize("name", SAMPLES)
def test_a_gradient_is_an_error_not_missing(name):
    op, args = SAMPLES[name]
    args = [
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in args
    ]
    with pytest.raises(
        RuntimeError, match="has no gradient: call the model under torch.inference_mode"
    ):
        results(op(*args))[-1].sum().backward()
    with torch.inference_mode():
        op(*args)


def test_compiles_without_a_graph_break():
    def block(x):
        h = layer_norm(x, torch.ones(D), torch.zeros(D), 1e-6)
        return linear(h, torch.eye(D), None, "gelu", None, x)

    x = torch.randn(2, N, D)
    assert torch.allclose(torch.compile(block, fullgraph=True, backend="aot_eager")(x), block(x))


def test_a_cpu_tensor_without_the_interpreter():
    code = (
        "import torch; from vit_fast.kernels.layer_norm import layer_norm as f;"
        "f(torch.ones(2, 8), torch.ones(8), torch.ones(8), 1e-6)"
    )
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "RuntimeError: vit_fast.layer_norm got a tensor on the CPU" in done.stderr
    assert "torch_ops()" in done.stderr


def test_devices_must_agree():
    with pytest.raises(ValueError, match="weight is on meta, the first argument on c"):
        launch_linear(torch.ones(2, 8), torch.ones(4, 8, device="meta"))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_forward_mode_derivative_is_an_error_not_zero(name):
    op, (x, *rest) = SAMPLES[name]
    if x.dtype == torch.uint8:
        pytest.skip("bytes have no derivative")
    with pytest.raises(RuntimeError, match="has no forward-mode derivative"):
        torch.func.jvp(lambda z: op(z, *rest), (x,), (torch.ones_like(x),))
