"""`pytest benchmarks`: the suite under pytest-benchmark, in a process of its own, and the file that it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.case import Case
from benchmarks.method import Method
from benchmarks.prepared import empty_row
from benchmarks.results import LAYERS, TIMED, Results, read
from benchmarks.sequence import Opened

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("pytest_benchmark")

# a suite of one case: a rival is beyond the accuracy rule, one is not there, one fails, and one of ours is wrong
BROKEN = """
from functools import partial
from benchmarks import registry, tasks
from benchmarks.rivals import RIVALS, Rival
from benchmarks.task import Program, Unavailable

def beyond(task):
    return Program(lambda *inputs: task.module(*inputs) * 1.5)

def missing(task):
    raise Unavailable("not for this machine")

def failing(task):
    raise ValueError("no such thing")

tasks.bare = lambda module, *more: Program(lambda *inputs: module(*inputs) * 1.5)
RIVALS |= {build.__name__: Rival(build.__name__, build) for build in (beyond, missing, failing)}
programs = ("transformers, eager", "beyond", "missing", "failing", "vit-fast", "vit-fast ViT")
registry.SUITES["toy"] = lambda device: [registry.Case("model", "toy", "tokens", "fp32", 1, programs)]
"""


def run(folder: Path, *words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """pytest benchmarks --suite toy in `folder`, where the results go to. code: is run before it."""
    (folder / "breaks.py").write_text(code)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    words = ("-q", "-rA", "-p", "no:cacheprovider", "-p", "breaks", "--suite", "toy", *words)
    given = (str(ROOT / "benchmarks"), "-c", str(ROOT / "pyproject.toml"))
    command = [sys.executable, "-m", "pytest", *given, *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def written(folder: Path) -> Results:
    (path,) = folder.glob(".benchmarks/*/toy-pytest.json")
    return read(path)


def test_leaves_the_results_file_of_the_suite(tmp_path):
    done = run(tmp_path, "--benchmark-only", "--benchmark-json", str(tmp_path / "theirs.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    results = written(tmp_path)
    assert "toy-pytest.json" in done.stdout
    assert results["run"]["front"] == "pytest" and results["run"]["suite"] == "toy"
    assert results["method"]["order"] == "one after another"
    assert "one after another" in results["method"]["text"]
    assert {c["layer"] for c in results["cases"]} == {*LAYERS} - {"cold start"}
    theirs = json.loads((tmp_path / "theirs.json").read_text())["benchmarks"]
    samples = {(b["group"], b["name"]): b["stats"]["data"] for b in theirs}
    for case in results["cases"]:
        assert case["drift"] is not None
        programs = [row["program"] for row in case["rows"]]
        assert programs[0] == case["baseline"] and len(programs) == len(set(programs)) > 1
        for row in case["rows"]:
            assert row.keys() == empty_row("vit-fast").keys()
            assert row["status"] in TIMED and row["speed_up"] > 0 and row["accuracy"]
            ms = [s * 1e3 for s in samples.pop((case["name"], row["program"]))]
            assert row["samples_ms"] == pytest.approx(ms, rel=1e-3)
            assert len(ms) >= results["method"]["least_rounds"]
            if not case["flops"]:
                assert row["tflops"] is None
                continue
            expected = case["flops"] / row["p50_ms"] / 1e9
            assert row["tflops"] == pytest.approx(expected, rel=1e-3)
    assert not samples, "each benchmark is a row"


@pytest.mark.parametrize(
    "how", ["--benchmark-only", pytest.param("--benchmark-disable", marks=pytest.mark.slow)]
)
def test_what_is_wrong_is_said_with_and_without_timing(tmp_path, how):
    done = run(tmp_path, how, code=BROKEN)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 3 passed, 1 skipped, 1 xfailed" in done.stdout, done.stdout
    assert "vit-fast ViT, wrong: largest error" in done.stdout
    assert "missing, skipped: not for this machine" in done.stdout
    assert "failing, failed: ValueError: no such thing" in done.stdout
    if how == "--benchmark-disable":
        assert not list(tmp_path.rglob("*.json")), "nothing was timed"
        return
    (case,) = written(tmp_path)["cases"]
    found = {row["program"]: (row["status"], row["p50_ms"] is not None) for row in case["rows"]}
    assert found == {
        "transformers, eager": ("ok", True),
        "beyond": ("inaccurate", True),
        "missing": ("skipped", False),
        "failing": ("failed", False),
        "vit-fast": ("ok", True),
        "vit-fast ViT": ("wrong", False),
    }


def test_a_cold_cache_under_pytest_benchmark(benchmark):
    """Cases of a GPU have one: what flushes it must not give pedantic arguments."""
    case = Case("operation", "toy", "qkv", "fp32", 1, ("PyTorch", "vit-fast"), "cold")
    few = Method(seconds=0.0, least_rounds=2, pause_ms=0.0)
    with torch.inference_mode():
        row = Opened(case, torch.device("cpu")).measure("vit-fast", benchmark, few)
    assert row["status"] == "ok"


def test_runs_only_when_it_is_named():
    words = ("--collect-only", "-q", "-p", "no:cacheprovider", "--ignore=tests", ".", "vit_fast")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert "no tests collected" in done.stdout, done.stdout + done.stderr
