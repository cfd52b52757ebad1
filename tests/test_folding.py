"""LayerNorm folded into the product behind it: statistics left by one launch, used by the next."""

import pytest
import torch

from accuracy import assert_as_accurate
from pairwise import pairwise
from tensors import DTYPES, LAYOUTS, f64, laid_out, target, values

pytest.importorskip("triton")
from vit_fast.kernels import linear_folded, linear_tiles
from vit_fast.kernels.folding import launch, row_statistics, row_statistics_ref
from vit_fast.kernels.layer_norm import layer_norm_ref
from vit_fast.kernels.linear import linear_ref
from vit_fast.kernels.linear_folded import launch_folded, launch_statistics
from vit_fast.ops import torch_ops
from vit_fast.weights import fold_norm_bias, fold_norm_weight

pytestmark = pytest.mark.usefixtures("on_device")
EPS = 1e-6

CASES = pairwise(
    rows=(1, 7, 197),
    width=(768, 200, 37, 64, 1100),
    n=(192, 200, 37),
    activation=(None, "gelu", "gelu_tanh"),
    mean=(0.0, 2.0, 8.0, 31.0),
    layout=LAYOUTS,
    arch=("sm_80", "sm_90"),
    dtype=DTYPES[1:],
)


def fold(w, b, gamma, beta):
    folded = fold_norm_weight([w], gamma)
    return folded, folded.float().sum(1), fold_norm_bias([w], [] if b is None else [b], beta)


@pytest.mark.parametrize("rows", [1, 7, 50])
@pytest.mark.parametrize("width", [1, 37, 64, 65, 768, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics(rows, width, dtype):
    x = (3 + values("normal", rows, width)).to(dtype)
    stats = row_statistics(x)
    torch.testing.assert_close(stats.double(), row_statistics_ref(x.double()), rtol=2e-6, atol=1e-6)


def test_statistics_of_strided_rows():
    x = laid_out(values("normal", 50, 192).half(), "rows sliced")
    torch.testing.assert_close(launch(x).double(), row_statistics_ref(x.double()), rtol=2e-6, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("n", [37, 200, 328])
def test_statistics_are_of_what_was_stored(n, arch):
    """In every tile; where a column tile lies partly or wholly past the end, nothing is written there."""
    gpu = target(arch)
    x, w = values("normal", 150, 96).half(), (0.1 * values("normal", n, 96, seed=1)).half()
    b, r = values("normal", n, seed=2).half(), 5 + values("normal", 150, n, seed=3).half()
    for config in linear_tiles.tiles(2, gpu.bulk_copies):
        y, stats = launch_statistics(x, w, b, None, r, gpu=gpu, config=config)
        ref = linear_ref(*f64(x, w, b), None, None, r.double())
        assert_as_accurate(y, ref, torch_ops().linear(x, w, b, None, None, r))
        expected = row_statistics_ref(y.double())
        torch.testing.assert_close(stats.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows, width, n, activation, mean, layout, arch, dtype", CASES)
def test_against_float64(rows, width, n, activation, mean, layout, arch, dtype):
    x = laid_out((mean + values("normal", rows, width)).to(dtype), layout)
    w = (values("normal", n, width, seed=1) / width**0.5).to(dtype)
    b, g, h = ((values("normal", m, seed=i)).to(dtype) for m, i in ((n, 2), (width, 3), (width, 4)))
    ref = linear_ref(layer_norm_ref(*f64(x, g, h), EPS), *f64(w, b), activation)
    ops = torch_ops()
    baseline = ops.linear(ops.layer_norm(x, g, h, EPS), w, b, activation)
    y = launch_folded(x, row_statistics(x), *fold(w, b, g, h), EPS, activation, gpu=target(arch))
    assert_as_accurate(y, ref, baseline)


def test_where_cublas_was_fastest_a_kernel_of_ours_runs(monkeypatch):
    """It knows nothing of statistics."""
    found = linear_folded.config_for

    def measured(*args):
        return linear_tiles.LIBRARY if args[4] else found(*args)

    monkeypatch.setattr(linear_folded, "config_for", measured)
    x, w = 5 + values("normal", 50, 192).half(), (values("normal", 64, 192, seed=1) / 14).half()
    g, h = (values("normal", 192, seed=i).half() for i in (3, 4))
    ref = linear_ref(layer_norm_ref(*f64(x, g, h), EPS), w.double())
    baseline = torch_ops().linear(torch_ops().layer_norm(x, g, h, EPS), w)
    for config in (None, linear_tiles.LIBRARY):
        y = launch_folded(x, row_statistics(x), *fold(w, None, g, h), EPS, config=config)
        assert_as_accurate(y, ref, baseline)
    y, stats = launch_statistics(x, w, None, None, None)
    torch.testing.assert_close(stats.double(), row_statistics_ref(y.double()), rtol=1e-5, atol=1e-6)


def test_eps_counts_where_rows_are_small():
    """A spread of 1e-3 beside an eps of 1e-5: rows come out a third as large as without."""
    x, w = values("tiny", 50, 192).half(), (values("normal", 64, 192, seed=1) / 14).half()
    b, g, h = (values("normal", m, seed=i).half() for m, i in ((64, 2), (192, 3), (192, 4)))
    ops, eps = torch_ops(), 1e-5
    ref = linear_ref(layer_norm_ref(*f64(x, g, h), eps), *f64(w, b))
    baseline = ops.linear(ops.layer_norm(x, g, h, eps), w, b)
    y = launch_folded(x, row_statistics(x), *fold(w, b, g, h), eps)
    assert_as_accurate(y, ref, baseline)


def test_column_sums_are_of_the_rounded_weight():
    """With those of the unrounded one what a row's mean adds is not taken away."""
    w, g = (values("normal", 64, 768, seed=1) / 28).half(), values("normal", 768, seed=2).half()
    folded, sums, _ = fold(w, None, g, torch.zeros_like(g))
    assert torch.equal(sums, folded.float().sum(1))
    assert not torch.equal(sums, (w.float() * g.float()).sum(1))


def test_wrong_arguments():
    x, w = torch.ones(7, 192).half(), torch.ones(64, 192).half()
    folded = fold(w, None, torch.ones(192), torch.ones(192))
    with pytest.raises(ValueError, match=r"stats is \(7, 1, 2\), expected \(7, 3, 2\)"):
        launch_folded(x, torch.ones(7, 1, 2), *folded, EPS)
    with pytest.raises(ValueError, match="column_sums is torch.float16, expected torch.float32"):
        launch_folded(x, row_statistics(x), folded[0], folded[1].half(), folded[2], EPS)
    with pytest.raises(ValueError, match="x is torch.float32, expected torch.float16 or"):
        launch_folded(x.float(), row_statistics(x), folded[0].float(), *folded[1:], EPS)
