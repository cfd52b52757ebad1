"""Costs of single kernels against numbers worked out by hand."""

import pytest

from benchmarks.hardware import H200
from benchmarks.paper import costs
from benchmarks.paper.costs import FILL_US, TILE_FILL_US, Program, Tile, gemm_us

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
    found = costs.wave_efficiency(M, N, Tile(block_m, block_n, 64, splits=splits), 132)
    assert found == pytest.approx(share, abs=0.006)


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


def test_attention_by_hand():
    """64 queries on 208 keys: 3.4 MFLOP at 788/132 TFLOP/s, 13312 scores at 1/16 + 5/128 clocks each."""
    program = Program(64, 208, 64)
    one = 3.4079e6 / (788e6 / 132) + 13312 * (1 / 16 + 5 / 128) / 1830
    time, bound = costs.attention_us(H200, "bf16", 1, 12, 197, 64, program, 0.0)  # 48 programs
    assert (time, bound) == (pytest.approx(FILL_US + one, rel=1e-4), "softmax")
    time, _ = costs.attention_us(H200, "bf16", 8, 12, 197, 64, program, 0.0)  # 384: 3 rounds
    assert time == pytest.approx(FILL_US + 3 * one, rel=1e-4)


def test_last_tiles_fill_idle_multiprocessors_then_rounds_of_their_own():
    """197 queries: three tiles of 64 and one of 16 a head."""
    program = Program(64, 208, 64, tail_m=16)
    assert program.rounds(197, 12, 132) == (1, 0)  # 36 and 12
    assert program.rounds(197, 384, 132) == (
        9,
        3,
    )  # 1152 leave 36 idle in the ninth; 348 of 384 are left
    assert Program(64, 64, 64, heads=2).rounds(50, 264, 132) == (1, 0)
    assert (str(program), str(Program(64, 64, 64, heads=2))) == ("64+16x208", "64x64*2")


def test_a_last_tile_of_attention_reads_all_keys_for_few_queries():
    """(2 x 16 + 2 x 208) x 64 values at 5120 / 132 bytes a clock: 0.808 us, while its sum would be 0.327."""
    one = 3.4079e6 / (788e6 / 132) + 13312 * (1 / 16 + 5 / 128) / 1830  # 1.310 us
    program = Program(64, 208, 64, tail_m=16)
    time, bound = costs.attention_us(H200, "bf16", 32, 12, 197, 64, program, 0.0)
    assert (time, bound) == (pytest.approx(FILL_US + 9 * one + 3 * 0.808, abs=0.005), "softmax")


def test_two_heads_a_program_take_twice_as_long_and_half_the_programs():
    """50 keys in 64 lanes; 264 heads are one round of two heads, or two rounds of one."""
    two, single = (
        costs.attention_us(H200, "bf16", 22, 12, 50, 64, Program(64, 64, 64, heads=h), 0.0)[0]
        for h in (2, 1)
    )
    one = 64 * 64 * 4 * 64 / (788e6 / 132) + 64 * 64 * (1 / 16 + 5 / 128) / 1830
    feed = 2 * 128 * 64 * 2 / (5120 / 132 * 1830)
    assert feed > one
    assert two == single == pytest.approx(FILL_US + 2 * feed)


def test_a_folded_product_reads_statistics_and_has_a_longer_epilogue():
    """12 parts of a row of 768, 8 bytes each, for 128 rows at 64 bytes a clock: 0.105 us; 11 instructions: 1.539."""
    assert [costs.statistics_bytes(width) for width in (64, 72, 768)] == [8, 16, 96]
    time, _ = gemm_us(H200, "bf16", 128, 256, 768, Tile(128, 256, 64), "folded", 0.0)
    assert time == pytest.approx(FILL_US + TILE_FILL_US + 8.431 + 1.539 + 0.105, abs=0.005)
