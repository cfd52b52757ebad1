"""Whole models and the rules' choices, against numbers worked out by hand."""

import dataclasses

import pytest
import triton

from benchmarks.hardware import A100, GPUS, H100, H200
from benchmarks.paper import chosen, roofline
from benchmarks.paper.costs import FILL_US, Tile, attention_us, gemm_us
from benchmarks.paper.prediction import WAYS, Way, forecast
from benchmarks.paper.roofline import BATCHES
from vit_fast.kernels import linear_tiles, tables, tuning
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
    program = chosen.attention_program(1, 16, N, N, D, "bf16", H200)
    assert (program.keys, program.lanes) == (keys, lanes)


@pytest.mark.parametrize(("N", "published"), [(512, 340), (1024, 382)])
def test_attention_is_near_tritons_published_rate_on_an_h100(N, published):
    """Shah et al. 2024, figure 5: fp16, head_dim 64, 32 heads, 16384 tokens."""
    B = 16384 // N
    program = chosen.attention_program(B, 32, N, N, 64, "fp16", H100)
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


# ways to run it


@pytest.mark.parametrize("folded", [False, True])
def test_a_dependent_launch_leaves_half_the_gap_and_asks_for_weights_early(folded):
    """ViT-B: half of 1.3 us for each launch, 0.3 us for each of 48 products."""
    plain, early = (forecast(H200, VIT_B, 1, way=Way(folded, pdl)) for pdl in (False, True))
    assert early.launches == plain.launches == (63 if folded else 86)
    assert early.gaps_us == pytest.approx(0.65 * early.launches)
    saved = 0.65 * early.launches + 0.3 * 48
    assert plain.time_us - early.time_us == pytest.approx(saved)
    assert sum(early.share(k) for k in early.kernels) == pytest.approx(1)


def test_a_dependent_launch_saves_fp32_its_gaps_alone():
    """Its products load by pointers, and ask for nothing before they wait."""
    plain, early = (forecast(H200, VIT_B, 1, "fp32", w) for w in WAYS[:2])
    assert plain.time_us - early.time_us == pytest.approx(0.65 * 86)


@pytest.mark.parametrize(("model", "launches", "depth"), [(VIT_B, 63, 12), (VIT_L, 123, 24)])
def test_folded_launches(model, launches, depth):
    """What tests/test_launch_counts.py counts; the last fc2 has its LayerNorm, and may be split, as ever."""
    f = forecast(H200, model, 1, way=Way(folded=True))
    counts = {k.name: k.count for k in f.kernels}
    assert f.launches == launches
    assert counts == {
        "patch_embed": 1, "statistics": 1, "layer_norm": 1, "qkv": depth, "attention": depth, "proj": depth,
        "fc1": depth, "fc2": depth - 1, "last fc2": 1,
    }  # fmt: skip
    assert f.flops == forecast(H200, model, 1).flops
    tiles = {k.name: k.tile for k in f.kernels}
    assert "/" in tiles["last fc2"] and "/" not in tiles["fc2"] + tiles["proj"]
    statistics = next(k for k in f.kernels if k.name == "statistics")
    moved = 197 * (2 * model.dim + 8 * model.dim // 64)
    assert statistics.time_us == pytest.approx(FILL_US + moved / (5120 * 1830))


def test_a_gated_layer_is_one_product_of_both_weights():
    """DINOv2-giant, one image: 3 x 32 tiles of 128 rows and 2 x 128 columns, a launch as fc1 would be one."""
    giant = MODELS["dinov2-g-14"]
    for way in WAYS[:2]:
        f, plain = (
            forecast(H200, m, 1, way=way) for m in (giant, dataclasses.replace(giant, gated=False))
        )
        gated, fc1 = (next(k for k in g.kernels if k.name == "fc1") for g in (f, plain))
        assert (gated.count, gated.launches, gated.tile) == (40, 1, "128x256")
        assert gated.waves == pytest.approx(3 * 32 / 132)
        assert gated.floor_us > 1.9 * fc1.floor_us
        assert f.launches == plain.launches
    eight = next(k for k in forecast(H200, giant, 8, way=WAYS[1]).kernels if k.name == "fc1")
    size, fill = (257 * 8, 8192, 1536), FILL_US - 0.3
    time, _ = gemm_us(H200, "bf16", *size, Tile(128, 256, 64), "gated", 2 * 8192 * 1536, fill)
    assert (eight.tile, eight.time_us) == ("128x256", pytest.approx(time))


def test_a_gated_layer_keeps_its_layer_norm_where_others_are_folded():
    f = forecast(H200, MODELS["dinov2-g-14"], 1, way=Way(folded=True))
    assert {k.name: k.count for k in f.kernels} == {
        "patch_embed": 1, "statistics": 1, "layer_norm": 41, "qkv": 40, "attention": 40, "proj": 40, "fc1": 40,
        "fc2": 39, "last fc2": 1,
    }  # fmt: skip
    plain = {k.name: k.time_us for k in forecast(H200, MODELS["dinov2-g-14"], 1).kernels}
    assert {k.name for k in f.kernels if k.time_us == plain.get(k.name)} >= {"proj", "fc1"}


def table(folder, monkeypatch, switches, entries):
    """In the user's cache, as `vit-fast tune` would have written it on an H200."""
    gpu = chosen.gpu_record(H200)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    about = {"schema": 1, "date": "2026-11-21", "gpu": tuning.hardware(gpu), "failed": []}
    versions = {"triton": triton.__version__}
    path = tables.user_path(gpu.name)
    tables.write(path, about | {"versions": versions, "switches": switches, "entries": entries})
    tuning.forget()
    return path


@pytest.fixture
def forgotten():
    yield
    tuning.forget()


def test_a_tuned_table_goes_before_the_rules(forgotten, tmp_path, monkeypatch, capsys):
    """fc1 by cuBLAS: the rule's tile without an epilogue, then GELU as a launch and a pass of its own."""
    wide = dict(block_m=128, block_n=256, block_k=64, num_warps=8, num_stages=3)
    ways = ("gelu", 3072, dataclasses.asdict(linear_tiles.LIBRARY)), ("bias", 2304, wide)
    entries = [
        {"op": "linear", "shape": dict(M=197, N=N, K=768, dtype="bf16", epilogue=e), "config": c}
        for e, N, c in ways
    ]
    path = table(tmp_path, monkeypatch, {"pdl": {"on": True}}, entries)
    f = forecast(H200, VIT_B, 1)
    kernels = {k.name: k for k in f.kernels}
    assert kernels["qkv"].tile == "128x256"
    fc1 = kernels["fc1"]
    rule = linear_tiles.launch_config(197, 3072, 768, 2, True, tuning.KNOWN["sm_90"])
    tile = Tile(rule.block_m, rule.block_n, rule.block_k, rule.blocks_per_sm, library=True)
    product, _ = gemm_us(H200, "bf16", 197, 3072, 768, tile, "plain", 2 * 3072 * 768)
    again = FILL_US + 2 * 2 * 197 * 3072 / (5120 * 1830)
    assert (fc1.tile, fc1.launches) == ("cuBLAS", 2)
    assert fc1.time_us == pytest.approx(product + again)
    assert f.launches == 86 + 12
    # statistics have no library: the rule's tile
    folded = forecast(H200, VIT_B, 1, way=Way(folded=True))
    assert next(k for k in folded.kernels if k.name == "fc1").tile == "64x128"
    assert roofline.main(["--model", "vit-b-16", "--batch", "1"]) == 0
    out = capsys.readouterr().out
    assert f"tiles from {path}, measured 2026-11-21" in out
    assert "dependent launches\n  kernel" in out  # what this GPU was measured to be faster with
