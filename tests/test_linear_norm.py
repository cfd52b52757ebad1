import dataclasses

import pytest
import torch

from accuracy import assert_as_accurate
from pairwise import pairwise
from tensors import DTYPES, LAYOUTS, f64, laid_out, target, values

pytest.importorskip("triton")
from vit_fast.kernels import linear_tiles
from vit_fast.kernels.linear_norm import launch, linear_norm, linear_norm_ref
from vit_fast.kernels.linear_tiles import Config
from vit_fast.kernels.tuning import KNOWN
from vit_fast.ops import torch_ops

pytestmark = pytest.mark.usefixtures("on_device")

CASES = pairwise(
    rows=(1, 7, 50, 197),
    n=(192, 200, 37),
    k=(192, 768, 90),
    splits=(1, 2, 3, 8),
    extras=("", "bias", "bias residual", "bias scale residual"),
    kind=("normal", "tiny", "one channel 1000x"),
    layout=LAYOUTS,
    arch=("sm_80", "sm_90"),
    dtype=DTYPES,
)
EPS = 1e-6


def arguments(rows, n, k, extras, kind, layout, dtype):
    x = laid_out(values(kind, rows, k).to(dtype), layout)
    w = laid_out((values("normal", n, k, seed=1) / k**0.5).to(dtype), layout)
    b, s, g, h = ((values("normal", n, seed=i)).to(dtype) for i in (2, 3, 5, 6))
    r = laid_out(values("normal", rows, n, seed=4).to(dtype), layout)
    return (
        x, w, b if "bias" in extras else None, s if "scale" in extras else None,
        r if "residual" in extras else None, g, h, EPS,
    )  # fmt: skip


def compare(call, *args):
    *tensors, eps = args
    ref = linear_norm_ref(*f64(*tensors), eps)
    x, w, b, s, r, *norm = args
    y = torch_ops().linear(x, w, b, None, s, r)
    baseline = y, torch_ops().layer_norm(y, *norm)
    for y, exact, own in zip(call(*args), ref, baseline, strict=True):
        assert_as_accurate(y, exact, own)


def split(splits, dtype):
    """A tile that takes short shares of K."""
    block = 32 if dtype == torch.float32 else 64
    return Config(64, 64, block, 4, 3, splits=splits)


@pytest.mark.parametrize("rows, n, k, splits, extras, kind, layout, arch, dtype", CASES)
def test_against_float64(rows, n, k, splits, extras, kind, layout, arch, dtype):
    args = arguments(rows, n, k, extras, kind, layout, dtype)
    compare(lambda *a: launch(*a, gpu=target(arch), config=split(splits, dtype)), *args)


@pytest.mark.parametrize("rows", [1, 197])
def test_as_the_rule_chooses(rows):
    args = arguments(rows, 384, 1536, "bias residual", "normal", "contiguous", torch.float16)
    compare(linear_norm, *args)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_every_tile_takes_partial_sums(arch):
    gpu = target(arch)
    args = arguments(70, 136, 1024, "bias residual", "normal", "contiguous", torch.float16)
    for tile in linear_tiles.tiles(2, gpu.bulk_copies):
        config = dataclasses.replace(tile, splits=3)
        compare(lambda *a, c=config: launch(*a, gpu=gpu, config=c), *args)


def test_both_ways_normalize_what_was_stored():
    """LayerNorm is of y as it was rounded, so the two ways differ in the order of a sum, and in nothing else."""
    args = arguments(50, 192, 768, "bias residual", "normal", "contiguous", torch.float16)
    (y1, h1), (y2, h2) = (launch(*args, config=split(n, torch.float16)) for n in (1, 4))
    assert (y1 == y2).float().mean() > 0.99
    same = (y1 == y2).all(-1)
    assert torch.equal(h1[same], h2[same])


def test_constant_rows():
    x, w, b, _, _, g, h, _ = arguments(7, 192, 192, "bias", "normal", "contiguous", torch.float32)
    args = (torch.zeros_like(x), w, torch.full_like(b, 3.7), None, None, g, h, 1e-12)
    compare(lambda *a: launch(*a, config=split(2, torch.float32)), *args)


def test_the_rule_splits_only_where_multiprocessors_are_idle():
    gpu = KNOWN["sm_90"]

    def splits(M, N, K):
        choice = linear_tiles.split_candidates(K, 2, True)
        return min(choice, key=lambda c: linear_tiles.clocks(c, M, N, K, 2, gpu)).splits

    assert splits(197, 768, 3072) >= 3  # fc2 of ViT-B, one image
    assert splits(197 * 256, 768, 3072) == 1
    assert splits(197 * 256, 768, 768) == 1


@pytest.mark.parametrize("k, splits", [(64, 1), (128, 1), (130, 1), (256, 2), (3072, 8)])
def test_a_share_of_k_is_two_steps_or_more(k, splits):
    choice = [c for c in linear_tiles.split_candidates(k, 2, True) if c.block_k == 64]
    assert max(c.splits for c in choice) == splits


def test_empty_batch():
    args = arguments(7, 192, 192, "bias", "normal", "contiguous", torch.float16)
    y, h = linear_norm(args[0][:0], *args[1:])
    assert y.shape == h.shape == (0, 192)


def test_wrong_arguments():
    args = list(arguments(7, 192, 192, "bias", "normal", "contiguous", torch.float16))
    with pytest.raises(ValueError, match=r"norm_weight is \(191,\), expected \(192,\)"):
        launch(*args[:5], args[5][:-1], *args[6:])
    with pytest.raises(ValueError, match=r"vit_fast.linear_norm: bias is \(3,\)"):
        launch(*args[:2], args[2][:3], *args[3:])
