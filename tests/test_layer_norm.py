import pytest
import torch

from accuracy import assert_as_accurate
from pairwise import pairwise
from tensors import DTYPES, LAYOUTS, VALUES, f64, laid_out, values

pytest.importorskip("triton")
from vit_fast.kernels.layer_norm import layer_norm, layer_norm_ref
from vit_fast.ops import torch_ops

pytestmark = pytest.mark.usefixtures("on_device")

CASES = pairwise(
    rows=(1, 7, 50, 197),
    width=(192, 384, 768, 1152, 200, 1, 37),
    kind=VALUES,
    layout=LAYOUTS,
    eps=(1e-12, 1e-6, 1e-5),
    dtype=DTYPES,
)


@pytest.mark.parametrize("rows, width, kind, layout, eps, dtype", CASES)
def test_against_float64(rows, width, kind, layout, eps, dtype):
    x = laid_out(values(kind, 2, rows, width).to(dtype), layout)
    w, b = (values("normal", width, seed=s).to(dtype) for s in (1, 2))
    y = layer_norm(x, w, b, eps)
    assert y.is_contiguous()
    assert_as_accurate(y, layer_norm_ref(*f64(x, w, b), eps), torch_ops().layer_norm(x, w, b, eps))


def test_mean_far_from_zero():
    x = (values("normal", 3, 768) + 4096.0).float()
    w, b = torch.ones(768), torch.zeros(768)
    assert_as_accurate(
        layer_norm(x, w, b, 1e-6),
        layer_norm_ref(*f64(x, w, b), 1e-6),
        torch_ops().layer_norm(x, w, b, 1e-6),
    )


def test_nonfinite_rows_stay_in_their_rows():
    x = values("normal", 4, 200).float()
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    w, b = values("normal", 2, 200).float()
    y = layer_norm(x, w, b, 1e-6)
    assert y[[1, 2]].isnan().all()
    assert y[[0, 3]].isfinite().all()


def test_empty_batch():
    assert layer_norm(torch.empty(0, 197, 64), torch.ones(64), torch.ones(64), 1e-6).shape == (
        0,
        197,
        64,
    )


@pytest.mark.parametrize(
    "x, w, b, words",
    [
        ((2, 8), (7,), (8,), "weight is (7,), expected (8,)"),
        ((2, 8), (8,), (8, 1), "bias is (8, 1)"),
        ((2, 20000), (20000,), (20000,), "x is (2, 20000)"),
        ((2, 0), (0,), (0,), "x is (2, 0)"),
    ],
)
def test_wrong_shapes(x, w, b, words):
    with pytest.raises(ValueError) as error:
        layer_norm(torch.ones(x), torch.ones(w), torch.ones(b), 1e-6)
    assert words in str(error.value)


def test_wrong_dtype():
    with pytest.raises(ValueError, match="x is torch.float64, expected torch.float32 or"):
        layer_norm(torch.ones(2, 8).double(), torch.ones(8), torch.ones(8), 1e-6)
