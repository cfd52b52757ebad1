"""The table of GPUs agrees with itself."""

import dataclasses

import pytest

from benchmarks.hardware import A100, GPUS, H100, H200, L4, RTX_4090


@pytest.mark.parametrize(
    ("gpu", "flops"), [(H200, 4096), (H100, 4096), (A100, 2048), (L4, 1024), (RTX_4090, 512)]
)
def test_a_datasheets_rate_is_what_its_units_do_in_a_clock(gpu, flops):
    """Sparse figures would be twice that. On GeForce, fp32 accumulation halves the rate."""
    assert gpu.flops_per_sm_clock == pytest.approx(flops, rel=0.01)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_every_figure_has_a_source(gpu):
    values = dataclasses.asdict(gpu)
    figures = {k for k, v in values.items() if v is not None} - {"name", "device", "sources"}
    assert set(gpu.sources) == figures
    measured = {k for k, source in gpu.sources.items() if source.startswith("measured: ")}
    ours = {"launch_gap_us", "measured_tflops", "measured_copy_tb_s"}
    assert measured == (ours if gpu is H200 else set())


def test_a_gpus_table_and_results_lie_under_the_drivers_name():
    assert [g.slug for g in GPUS.values()] == [
        "nvidia_h200",
        "nvidia_h100_80gb_hbm3",
        "nvidia_a100_sxm4_80gb",
        "nvidia_l4",
        "nvidia_geforce_rtx_4090",
    ]


def test_where_nothing_was_measured_the_datasheet_is_scaled_as_on_the_h200():
    assert (H200.peak_tflops("bf16"), H200.copy_tb_s) == (788, 4.3)
    assert A100.peak_tflops("fp16") == pytest.approx(312 * 788 / 989.4)
    assert A100.peak_tflops("fp32") == pytest.approx(19.5 * 788 / 989.4)
    assert L4.copy_tb_s == pytest.approx(0.3 * 4.3 / 4.8)
    with pytest.raises(ValueError, match="'fp8', expected one of bf16, fp16, fp32"):
        H200.peak_tflops("fp8")
