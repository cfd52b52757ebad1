"""Predictions against numbers worked out by hand."""

import pytest

from benchmarks import prediction
from benchmarks.hardware import A100, GPUS, H100, H200
from benchmarks.prediction import FILL_US, TILE_FILL_US, Program, Tile, forecast, gemm_us
from benchmarks.roofline import BATCHES
from vit_fast.workload import MODELS

VIT_B, VIT_L = MODELS["vit-b-16"], MODELS["vit-l-16"]


# waves: useful share of the rounds on 132 multiprocessors, counted by hand


@pytest.mark.parametrize(
    ("M", "N", "tile", "share"),
    [
        (197, 2304, (64, 128, 1), 0.42),  # ViT-B, batch 1: 72 tiles
        (197, 2304, (128, 128, 3), 0.63),
        (197, 768, (64, 64, 1), 0.28),
        (197, 768, (64, 128, 4), 0.56),
        (197, 3072, (64, 128, 1), 0.56),
        (1576, 2304, (128, 256, 1), 0.84),  # batch 8: 117 tiles
        (1576, 768, (128, 128, 1), 0.56),
        (1576, 3072, (128, 128, 1), 0.75),
        (6304, 2304, (128, 128, 1), 0.96),  # batch 32: 900 tiles in 7 rounds
        (6304, 768, (128, 128, 1), 0.75),
        (6304, 3072, (128, 256, 1), 0.90),
        (12608, 2304, (128, 256, 1), 0.96),  # batch 64
        (12608, 768, (128, 128, 1), 0.90),
        (12608, 3072, (128, 256, 1), 0.99),
        (6304, 1024, (64, 256, 1), 0.99),  # ViT-L, batch 32
    ],
)
def test_wave_efficiency(M, N, tile, share):
    block_m, block_n, splits = tile
    found = prediction.wave_efficiency(M, N, Tile(block_m, block_n, 64, splits=splits), 132)
    assert found == pytest.approx(share, abs=0.006)


def test_every_product_at_batch_256_fills_its_rounds():
    for model in (VIT_B, VIT_L):
        for k in forecast(H200, model, 256).kernels:
            if k.name in ("qkv", "proj", "fc1", "fc2"):
                assert k.efficiency >= 0.97, k


# one kernel


def test_one_tile_by_hand():
    """One 128 x 256 tile at K = 768: 50.3 MFLOP at 788/132 TFLOP/s = 8.43 us; 8 instructions for each of
    32768 elements, 128 a clock at 1830 MHz: 1.12 us."""
    time, bound = gemm_us(H200, "bf16", 128, 256, 768, Tile(128, 256, 64), "plain", 0.0)
    assert time == pytest.approx(FILL_US + TILE_FILL_US + 8.431 + 1.119, abs=0.005)
    assert bound == "matrix"


def test_rounds_not_tiles_cost_time():
    def time(tiles, **tile):
        return gemm_us(H200, "bf16", 128 * tiles, 256, 768, Tile(128, 256, 64, **tile), "plain", 0)[0]  # fmt: skip

    assert time(133) - time(132) == pytest.approx(8.431 + 1.119 + TILE_FILL_US, abs=0.005)
    assert time(133) == time(264)
    # two blocks a multiprocessor: the epilogue and the fill of all tiles but one hide behind products
    assert time(264) - time(264, blocks_per_sm=2) == pytest.approx(1.119 + TILE_FILL_US, abs=0.005)


def test_small_tiles_are_fed_by_the_cache_not_bound_by_products():
    """132 tiles of 64 x 128: 192 rows of 768 in bf16 at 5120 / 132 bytes a clock are 4.15 us, their products 2.11."""
    time, bound = gemm_us(H200, "bf16", 64 * 132, 128, 768, Tile(64, 128, 64), "plain", 0.0)
    assert time == pytest.approx(FILL_US + TILE_FILL_US + 4.155 + 0.280, abs=0.005)
    assert bound == "feed"


def test_cold_weights_bound_a_product_of_few_rows():
    """One row: 160 tiles have little to multiply, and 83.9 MB come at 4.3 TB/s."""
    time, bound = gemm_us(H200, "bf16", 1, 40960, 64, Tile(64, 256, 64), "plain", 40960 * 1024 * 2)
    assert (time, bound) == (pytest.approx(FILL_US + 19.508, abs=0.005), "memory")


def test_splitting_k_divides_the_products_and_adds_partial_sums():
    """24 tiles of 64 x 128 at K = 3072, split in four: still one round, of a quarter each, 96 multiprocessors now share
    5120 bytes a clock; 605 KB of partial sums four times through L2, written and read."""
    whole, split = (
        gemm_us(H200, "bf16", 197, 768, 3072, Tile(64, 128, 64, 1, n), "residual", 0)[0]
        for n in (1, 4)
    )
    aside = 64 * 128 * 11 / (128 * 1830) + TILE_FILL_US
    assert whole == pytest.approx(FILL_US + 192 * 3072 * 2 / (64 * 1830) + aside)
    partial = 2 * 4 * 197 * 768 * 4 / (5120 * 1830)
    main = 192 * 768 * 2 / (5120 / 96 * 1830)
    assert split == pytest.approx(FILL_US + partial + main + aside)
    assert split < whole


@pytest.mark.parametrize(
    ("N", "D", "keys", "lanes"),
    [(197, 64, 208, 64), (50, 64, 64, 64), (257, 64, 272, 64), (729, 72, 736, 80)],
)
def test_attention_pads_keys_and_head_to_its_chunks(N, D, keys, lanes):
    program = prediction.attention_program(N, N, D, 2, H200)
    assert (program.keys, program.lanes) == (keys, lanes)


def test_attention_by_hand():
    """64 queries on 208 keys: 3.4 MFLOP at 788/132 TFLOP/s, 13312 scores at 1/16 + 5/128 clocks each."""
    program = Program(64, 208, 64)
    one = 3.4079e6 / (788e6 / 132) + 13312 * (1 / 16 + 5 / 128) / 1830
    time, bound = prediction.attention_us(H200, "bf16", 1, 12, 197, 64, program, 0.0)  # 48 programs
    assert (time, bound) == (pytest.approx(FILL_US + one, rel=1e-4), "softmax")
    time, _ = prediction.attention_us(H200, "bf16", 8, 12, 197, 64, program, 0.0)  # 384: 3 rounds
    assert time == pytest.approx(FILL_US + 3 * one, rel=1e-4)


@pytest.mark.parametrize(("N", "published"), [(512, 340), (1024, 382)])
def test_attention_is_near_tritons_published_rate_on_an_h100(N, published):
    """Shah et al. 2024, figure 5: fp16, head_dim 64, 32 heads, 16384 tokens."""
    B = 16384 // N
    program = prediction.attention_program(N, N, 64, 2, H100)
    time, _ = prediction.attention_us(H100, "fp16", B, 32, N, 64, program, 0.0)
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
