"""Whole models and the rules' choices, against numbers worked out by hand."""

import pytest

from benchmarks import prediction
from benchmarks.costs import FILL_US, attention_us
from benchmarks.hardware import A100, GPUS, H100, H200
from benchmarks.prediction import forecast
from benchmarks.roofline import BATCHES
from vit_fast.workload import MODELS

VIT_B, VIT_L = MODELS["vit-b-16"], MODELS["vit-l-16"]


def test_every_product_at_batch_256_fills_its_rounds():
    for model in (VIT_B, VIT_L):
        for k in forecast(H200, model, 256).kernels:
            if k.name in ("qkv", "proj", "fc1", "fc2"):
                assert k.efficiency >= 0.97, k


@pytest.mark.parametrize(
    ("N", "D", "keys", "lanes"),
    [(197, 64, 208, 64), (50, 64, 64, 64), (257, 64, 272, 64), (729, 72, 736, 80)],
)
def test_attention_pads_keys_and_head_to_its_chunks(N, D, keys, lanes):
    program = prediction.attention_program(N, N, D, 2, H200)
    assert (program.keys, program.lanes) == (keys, lanes)


@pytest.mark.parametrize(("N", "published"), [(512, 340), (1024, 382)])
def test_attention_is_near_tritons_published_rate_on_an_h100(N, published):
    """Shah et al. 2024, figure 5: fp16, head_dim 64, 32 heads, 16384 tokens."""
    B = 16384 // N
    program = prediction.attention_program(N, N, 64, 2, H100)
    time, _ = attention_us(H100, "fp16", B, 32, N, 64, program, 0.0)
    assert 4 * B * 32 * N * N * 64 / time / 1e6 == pytest.approx(published, rel=0.15)


def test_layer_norm_is_its_bytes_from_the_cache_or_from_memory():
    small, large = (
        next(k for k in forecast(H200, VIT_B, b).kernels if k.name == "layer_norm")
        for b in (1, 256)
    )
    assert small.time_us == pytest.approx(FILL_US + 4 * 198 * 768 / (5120 * 1830), rel=1e-6)
    assert large.time_us == pytest.approx(FILL_US + 4 * (50432 + 1) * 768 / 4.3e6, rel=1e-6)
    assert (small.bound, large.bound) == ("fill", "memory")


def test_only_a_product_with_a_layer_norm_behind_it_is_split():
    """By linear_norm's rule; linear's own results have nobody to add them up."""
    kernels = {k.name: k for k in forecast(H200, VIT_B, 1).kernels}
    assert "/" in kernels["fc2"].tile
    assert "/" not in kernels["qkv"].tile + kernels["fc1"].tile


# a whole model


@pytest.mark.parametrize(
    ("model", "batch", "gflop"), [(VIT_B, 256, 35.126), (VIT_B, 1, 35.126), (VIT_L, 1, 123.11)]
)
def test_the_floor_is_the_flops_at_the_measured_peak(model, batch, gflop):
    f = forecast(H200, model, batch)
    assert f.floor_us == pytest.approx(gflop * batch / 788 * 1e3, rel=1e-4)
    assert f.floor_us < f.kernels_floor_us < f.time_us


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_a_model_is_the_sum_of_its_kernels_and_gaps(gpu):
    f = forecast(gpu, VIT_B, 8)
    assert f.launches == sum(k.count for k in f.kernels)
    parts = sum(k.count * (k.time_us + 1.3) for k in f.kernels)
    assert f.time_us == pytest.approx(parts)
    assert sum(f.share(k) for k in f.kernels) == pytest.approx(1)
    assert f.images_per_s == pytest.approx(8e6 / parts)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_more_images_take_longer_and_full_batches_are_cheapest(gpu, model):
    all_of = [forecast(gpu, model, batch) for batch in BATCHES]
    times = [f.time_us for f in all_of]
    assert times == sorted(times)
    assert all_of[-1].images_per_s > all_of[0].images_per_s


def test_fp32_has_its_own_peak_and_bytes():
    half, full = (forecast(A100, VIT_B, 8, dtype) for dtype in ("fp16", "fp32"))
    assert full.floor_us / half.floor_us == pytest.approx(312 / 19.5)
    assert full.time_us > full.floor_us


def test_a_batch_below_one_is_refused():
    with pytest.raises(ValueError, match="batch is 0"):
        forecast(H200, VIT_B, 0)
