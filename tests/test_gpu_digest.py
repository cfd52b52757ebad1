"""What the GPU program makes of its rows: rates, the composed bound, goals, failures, the table."""

import copy

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.gpu import candidates, ceilings, digest, goals, programs, summary, table
from benchmarks.gpu.ceilings import bare, rates
from benchmarks.gpu.setting import FULL, TOY
from vit_fast.kernels.tuning import KNOWN
from vit_fast.workload import MODELS, operations


def programs_row(batch, **burst_ms):
    numbers = {"error": 0.01, "allowed": 0.02, "wrong": "", "tflops": 394.0}
    found = {
        name.replace("_", " "): {
            **numbers, "burst_ms": ms, "p50_ms": 1.5 * ms, "p99_ms": 2 * ms, "images_s": batch / ms * 1e3,
        }
        for name, ms in burst_ms.items()
    }  # fmt: skip
    found["vit-fast"] = found.pop("ours")
    return {"status": "ok", "ours": True, "model": "vit-b-16", "batch": batch, "dtype": "bf16",
            "at": "2026-11-21T00:00:00Z", "programs": found}  # fmt: skip


@pytest.fixture
def data():
    """Each vendor operation 10 us, copies at 1000 GB/s, ViT-B/16 at batch 64 in 2 ms."""
    cells = {
        "ceilings/copy": {"status": "ok", "gbps": 1000.0, "vendor": True},
        "ceilings/gemm 8192 bf16": {"status": "ok", "tflops": 788.0, "vendor": True},
        "end_to_end/ViT-B/16-224 batch 64 transformers": programs_row(
            64, ours=2.0, **{"transformers, eager": 8.0}
        ),
        "end_to_end/ViT-B/16-224 batch 64 torch.compile max-autotune": programs_row(
            64, ours=2.5, **{goals.COMPILED: 3.0, "vit-fast, pdl": 1.0}
        ),
    }
    for o in operations(MODELS["vit-b-16"], 64):
        if o.op in ("linear", "attention"):
            row = {"status": "ok", "us": {"slow": 11.0, "fast": 10.0, "again": 9.0}}
            cells[f"ceilings/{bare(o, 'bf16')}"] = row
    machine = {"device": goals.DEVICE, "dry_run": False, "source": "abc"}
    machine |= dict.fromkeys(("driver", "torch", "triton", "transformers"), "1")
    return {"machine": machine, "cells": cells, "skipped": []}


def test_rates_of_a_slow_machine_are_not_zero(data, monkeypatch):
    """Toys on a CPU that others use as well: a dry run divided by a copy's 0.0 GB/s."""
    monkeypatch.setattr(ceilings, "in_turn_us", lambda *a: {"copy": 8e7, "again": 8e7})
    row = ceilings.copy(TOY)
    assert 0 < row["gbps"] < 0.05
    data["cells"]["ceilings/copy"] |= row
    bound, lacking = digest.composed_us(data["cells"], "vit-b-16", 64)
    assert bound > 0 and not lacking
    found = rates(next(operations(MODELS["vit-b-16"], 1)), {"torch": 1e12, "again": 1e12})
    assert found["best_tflops"] > 0 and found["best_gbps"] > 0


def test_composed_bound(data):
    bytes_moved = sum(
        o.count * o.bytes
        for o in operations(MODELS["vit-b-16"], 64)
        if o.op in ("layer_norm", "patch_embed")
    )
    us, lacking = digest.composed_us(data["cells"], "vit-b-16", 64)
    assert us == pytest.approx(12 * 5 * 10.0 + bytes_moved / 1e3 / 1e3) and not lacking
    name = next(k for k in data["cells"] if "attention" in k)
    del data["cells"][name]
    assert digest.composed_us(data["cells"], "vit-b-16", 64) == (None, [name])


def test_speed_ups_are_of_programs_that_ran_in_turn(data):
    found = digest.speed_ups(data["cells"], "vit-b-16", 64)
    assert found == {"transformers, eager": 4.0, goals.COMPILED: 1.2}
    assert digest.speed_ups(data["cells"], "vit-b-16", 64, others=False) == {"vit-fast, pdl": 0.4}


def test_goals(data):
    text = "\n".join(summary.lines(data))
    assert "vit-b-16 batch 64 torch.compile max-autotune: 1.2, goal 1.25, dream 1.5: MISSED" in text
    throughput, latency = (next(g for g in goals.GOALS if g.measure == m) for m in ("images_s", "p50_ms"))  # fmt: skip
    assert summary.verdict(throughput, throughput.goal) == "goal met"
    assert summary.verdict(throughput, throughput.goal - 1) == "MISSED"
    assert summary.verdict(latency, latency.dream) == "dream reached"
    assert summary.verdict(latency, latency.goal * 1.01) == "MISSED"
    data["machine"]["device"] = "another GPU"
    assert "MISSED" not in "\n".join(summary.lines(data))


def test_a_rival_counts_with_its_best_attention(data):
    name = "end_to_end/ViT-B/16-224 batch 64 another"
    row = programs_row(64, ours=2.0, **{f"{goals.COMPILED}, cuDNN attention": 2.2})
    goal = goals.Goal("vit-b-16", 64, goals.COMPILED, 1.25, 1.5)
    assert summary.reached(data["cells"], goal) == 1.2
    assert summary.reached(data["cells"] | {name: row}, goal) == 1.1
    assert summary.reached({}, goal) is None


def test_failures(data):
    assert not summary.failures(data)
    rows = {
        "correctness/a": {"status": "wrong", "wrong": "largest error 3, allowed 1", "ours": True},
        "models/b": {"status": "crashed", "why": "exit code 1", "ours": True},
        "models/c": {"status": "cut", "why": "minutes", "ours": True},
        "ceilings/d": {"status": "failed", "why": "no memory", "vendor": True},
        "checks/e": {"status": "wrong", "wrong": "largest error 3, allowed 1"},
        "end_to_end/f torch.compile default": {"status": "timed out", "why": "limit", "ours": True},
    }
    data["cells"] |= rows
    assert set(summary.failures(data)) == {"correctness/a", "models/b"}
    text = "\n".join(summary.lines(data))
    assert "FAILED: 2\n  correctness/a: largest error 3, allowed 1" in text
    assert "did not come out: 4" in text


def test_runs_that_differ_and_skipped_cells_are_told(data):
    says = "runs on the same input differ by 0.1"
    data["cells"]["correctness/a"] = {"status": "ok", "runs_differ_by": 0.1, "says": says}
    data["skipped"] = [f"models/{i}" for i in range(20)]
    text = "\n".join(summary.lines(data))
    assert f"correctness/a: {says}" in text
    assert "skipped, no minutes left: 20" in text and "and 8 more" in text


def test_table(data):
    lines = list(table.markdown(data))
    assert lines[0].startswith("NVIDIA H200, driver 1, torch 1") and "2026-11-21" in lines[0]
    columns = [c.strip() for c in lines[-1].strip("|").split("|")]
    assert columns == [
        "ViT-B/16-224", "64", "32,000", "3.000", "4.000", "50%", "0.01 / 0.02", "4.00", "1.20",
    ]  # fmt: skip
    wrong = copy.deepcopy(data)
    row = wrong["cells"]["end_to_end/ViT-B/16-224 batch 64 transformers"]
    row["programs"]["vit-fast"]["wrong"] = "largest error"
    assert "WRONG" in list(table.markdown(wrong))[-1]


@pytest.mark.parametrize("text", [None, "no JSON", '{"predictions": []}', "[]"])
def test_a_table_of_what_is_no_results_file_exits_with_2(tmp_path, capsys, text):
    path = tmp_path / "gpu.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        table.main([str(path)])
    assert stop.value.code == 2
    assert f"error: {path}: " in capsys.readouterr().err


def test_rates():
    o = next(o for o in operations(MODELS["vit-b-16"], 1) if o.name == "qkv")
    row = rates(o, {"a": 2.0, "b": 1.0, "again": 0.5})
    assert row["best"] == "b" and row["spread"] == 0.75
    assert row["best_tflops"] == pytest.approx(o.flops / 1e-6 / 1e12, rel=1e-3)
    assert row["best_gbps"] == pytest.approx(o.bytes / 1e-6 / 1e9, rel=1e-3)


def test_candidates_that_cannot_run_here_are_left_out_and_told(monkeypatch, data):
    """For want of a GPU, on a GPU that they are not for, without Gluon."""
    h200, a100 = KNOWN["sm_90"], KNOWN["sm_80"]
    monkeypatch.setattr(candidates, "CANDIDATES", (Stand("g", "linear"),))

    def found(setting, gpu):
        cells = list(candidates.cells(setting, gpu))
        told = [c for c in cells if c.run is candidates.unavailable]
        return told, [c for c in cells if c.params.get("candidate") == "g"]

    monkeypatch.setattr(candidates, "REASON", "")
    told, tried = found(FULL, h200)
    assert not told and tried
    assert not any(c.ours for c in tried) and all(c.limit == 20 for c in tried)
    monkeypatch.setattr(candidates, "REASON", "no Gluon")
    for setting, gpu, why in (
        (FULL, h200, "no Gluon"),
        (FULL, a100, "for compute capability 9.0, A100 has 8.0: left out"),
        (TOY, h200, "need a GPU: left out"),
    ):
        (cell,), tried = found(setting, gpu)
        assert not tried
        row = cell.run(setting, **cell.params)
        assert why in row["left_out"]
        data["cells"]["checks/it"] = {**row, "status": "ok"}
        assert f"left out: 1\n  checks/it: {row['left_out']}" in "\n".join(summary.lines(data))


class Stand:
    """A candidate that applies everywhere."""

    def __init__(self, name, op):
        self.name, self.op = name, op

    def applies(self, shape):
        return True


def test_a_config_of_our_own_that_is_wrong_is_a_failure_and_large_ones_are_checked_alone():
    checks = [c for c in candidates.cells(FULL, KNOWN["sm_90"]) if c.run is candidates.checked]
    for cell in checks:
        assert cell.ours == (not isinstance(cell.params["candidate"], str))
        assert cell.alone == (cell.params["operation"].bytes > candidates.LARGE)
    assert {c.alone for c in checks} == {True, False}


def test_a_dry_run_says_that_its_numbers_mean_nothing(data):
    for text in (summary.lines(data), table.markdown(data)):
        assert "mean nothing" not in "\n".join(text)
    data["machine"]["dry_run"] = True
    for text in (summary.lines(data), table.markdown(data)):
        assert "\n".join(text).count("its times and ratios mean nothing") == 1


def test_what_a_vendor_does_not_have():
    """Whatever its words: a fault of its own does not take our row with it, an error of CUDA's does."""

    def fails(error):
        def call():
            raise error

        return call

    for words in ("No available kernel. Aborting execution.", "cuDNN Frontend error: no plan\nat"):
        assert programs.missing(fails(RuntimeError(words))) == words.splitlines()[0]
    assert programs.missing(lambda: None) == ""
    for error in (torch.OutOfMemoryError("full"), torch.AcceleratorError("CUDA error")):
        with pytest.raises(type(error)):
            programs.missing(fails(error))
