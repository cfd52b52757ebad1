"""The command: goals, measurements beside predictions, what it writes and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.hardware import H200, L4
from benchmarks.paper import roofline
from benchmarks.paper.prediction import forecast
from vit_fast.workload import MODELS

VIT_B = MODELS["vit-b-16"]
ROOT = Path(__file__).resolve().parents[1]


def found(*cells):
    return {(m, b): forecast(H200, MODELS[m], b) for m, b in cells}


@pytest.mark.parametrize(
    ("value", "verdict"), [(14_499, "missed"), (14_500, "goal"), (17_000, "dream")]
)
def test_goals_of_throughput_are_floors(value, verdict):
    assert roofline.GOALS[0].verdict(value) == verdict


@pytest.mark.parametrize(("value", "verdict"), [(0.201, "missed"), (0.2, "goal"), (0.15, "dream")])
def test_goals_of_latency_are_ceilings(value, verdict):
    assert roofline.GOALS[2].verdict(value) == verdict


def test_goals_are_the_h200s_alone():
    assert len(list(roofline.goal_lines(found(("vit-b-16", 1), ("vit-b-16", 8))))) == 1
    assert not list(roofline.goal_lines({("vit-b-16", 1): forecast(L4, VIT_B, 1)}))


def cells(forecast):
    qkv = next(k for k in forecast.kernels if k.name == "qkv")
    common = {"model": "vit-b-16", "batch": 8}
    kernel = {"section": "kernels", "op": "qkv"} | common
    return [
        kernel | {"name": "M1576", "ms": (qkv.time_us + 1.3) / 1e3 * 1.16},
        kernel | {"name": "in fp16", "ms": 1.0, "dtype": "fp16"},
        kernel | {"name": "cuBLAS", "ms": 1.0, "vendor": True},
        kernel | {"name": "wrong", "ms": 1.0, "status": "wrong"},
        kernel | {"name": "another batch", "ms": 1.0, "batch": 9},
        {"section": "ceilings", "name": "copy", "ms": 1.0} | common,
        {"section": "end_to_end", "name": "ViT-B", "ms": forecast.time_us / 1e3 * 0.86} | common,
    ]


@pytest.mark.parametrize("shape", ["list", "mapping"])
def test_measurements_stand_beside_predictions_and_misses_are_flagged(tmp_path, capsys, shape):
    data = cells(forecast(H200, VIT_B, 8))
    if shape == "mapping":
        data = {f"{c['section']}/{c['name']}": {k: c[k] for k in c if k != "section"} for c in data}
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"cells": data}))
    assert roofline.main(["--model", "vit-b-16", "--batch", "8", "--results", str(path)]) == 0
    lines = capsys.readouterr().out.partition("predicted beside measured")[2].splitlines()[1:]
    assert len(lines) == 2
    assert "batch 8 qkv" in lines[0] and "+16%   off by more than 15%" in lines[0]
    assert "-14%" in lines[1] and "off by" not in lines[1]


def test_a_way_is_compared_with_the_variant_of_its_name(tmp_path, capsys):
    programs = {"vit-fast": {"burst_ms": 9.0}, "vit-fast, folded": {"burst_ms": 1.0}}
    row = {"model": "vit-b-16", "batch": 1, "ms": 9.0, "programs": programs}
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"cells": {"end_to_end/ViT-B batch 1 variants": row}}))
    argv = ["--model", "vit-b-16", "--batch", "1", "--results", str(path)]
    assert roofline.main([*argv, "--folded"]) == 0
    (line,) = capsys.readouterr().out.partition("beside measured, ms\n")[2].splitlines()
    assert line.startswith("  vit-b-16 batch 1, folded ") and " 1.0000 " in line
    assert roofline.main(argv) == 0
    (line,) = capsys.readouterr().out.partition("beside measured, ms\n")[2].splitlines()
    assert line.startswith("  vit-b-16 batch 1 ") and " 9.0000 " in line


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--gpu", "A100", "--dependent"], "A100 has compute capability 8.0"),
        (["--folded", "--dtype", "fp32"], "dtype is fp32, LayerNorm is folded in fp16 and bf16"),
    ],
)
def test_ways_that_do_not_exist_are_refused(argv, why, capsys):
    assert roofline.main(argv) == 2
    assert why in capsys.readouterr().err


def test_a_file_without_cells_is_refused(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    path.write_text('{"machine": {}}')
    assert roofline.main(["--batch", "1", "--results", str(path)]) == 2
    assert 'has "cells", this one has machine' in capsys.readouterr().err
    assert roofline.main(["--batch", "1", "--results", str(tmp_path / "none.json")]) == 2


def test_predictions_are_written_as_data(tmp_path, capsys):
    path = tmp_path / "p.json"
    argv = ["--gpu", "A100", "--model", "vit-b-16", "--batch", "1", "8", "--json", str(path)]
    assert roofline.main(argv) == 0
    assert "predicted for A100, not measured" in capsys.readouterr().out
    data = json.loads(path.read_text())
    assert data["gpu"]["sources"]["sms"].startswith("NVIDIA A100")
    assert [(p["model"], p["batch"]) for p in data["predictions"]] == [("vit-b-16", 1), ("vit-b-16", 8)]  # fmt: skip
    for p in data["predictions"]:
        kernels = sum(k["count"] * k["time_us"] for k in p["kernels"]) / 1e3
        assert p["ms"] == pytest.approx(kernels + p["launch_gaps_ms"])


def test_the_log_is_rewritten_between_its_marks_alone(tmp_path, capsys):
    begin, end = roofline.MARKS
    log = tmp_path / "LOG.md"
    log.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    argv = ["--model", "vit-b-16", "--batch", "1", "--log", str(log)]
    assert roofline.main(argv) == 0
    first = log.read_text()
    assert first.startswith(f"before\n{begin}\n| model") and first.endswith(f"{end}\nafter\n")
    assert "\nold\n" not in first and "| ViT-B/16-224 | 1 |" in first
    assert roofline.main(argv) == 0
    assert log.read_text() == first
    assert [line.split(" | ")[1:3] for line in first.splitlines() if line.startswith("| ViT")][
        1:
    ] == [
        ["plain", "86"],
        ["dependent launches", "86"],
        ["LayerNorm folded", "63"],
        ["LayerNorm folded, dependent launches", "63"],
    ]
    log.write_text("no marks\n")
    assert roofline.main(argv) == 2
    assert "has no line <!-- roofline: begin -->" in capsys.readouterr().err
    assert log.read_text() == "no marks\n"


@pytest.mark.parametrize("argv", [["--batch", "0"], ["--batch", "1", "--log", "/nowhere/LOG.md"]])
def test_arguments_that_do_not_fit_exit_with_2(argv, capsys):
    assert roofline.main(argv) == 2
    assert capsys.readouterr().err.startswith("roofline: ")


def test_a_dry_run_is_held_against_nothing(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"machine": {"dry_run": True}, "cells": {}}))
    assert roofline.main(["--batch", "1", "--results", str(path)]) == 2
    assert "is of a dry run" in capsys.readouterr().err


def test_without_triton_it_says_so_and_exits_with_2():
    """A process in which triton cannot be found."""
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n"
        "sys.modules['triton'] = None\n"
        "from benchmarks.paper import roofline; sys.exit(roofline.main([]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert "needs triton" in done.stderr
