"""`pytest benchmarks`: the suite under pytest-benchmark, in a process of its own, and the file that it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measured import empty_row
from benchmarks.results import LAYERS, TIMED, Results, read

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("pytest_benchmark")

# a program of ours that is wrong, a rival that is, one that cannot run here and one that fails
BROKEN = """
import pytest
from benchmarks import tasks
from benchmarks.rivals import RIVALS, Rival
from benchmarks.rivals.eager import eager
from benchmarks.task import Program, Unavailable

def wrong(task):
    return Program(lambda *inputs: task.module(*inputs) * 1.5)

def missing(task):
    raise Unavailable("not for this machine")

def failing(task):
    raise ValueError("no such thing")

RIVALS["transformers, sdpa"] = Rival("transformers, sdpa", {rival})
{ours}
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
            assert row.keys() == empty_row("vit-fast").keys() | row.keys() & {"launches"}
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


def test_without_timing_it_still_checks(tmp_path):
    few = ("-k", "qkv or tokens and not ablation", "--benchmark-disable")
    done = run(tmp_path, *few)
    assert done.returncode == 0 and "\n10 passed" in done.stdout, done.stdout
    assert not list(tmp_path.rglob("*.json"))
    ours = "tasks.bare = lambda module, *more: Program(lambda *inputs: module(*inputs) * 1.5)"
    done = run(tmp_path, *few, code=BROKEN.format(rival="eager", ours=ours))
    assert done.returncode == 1, done.stdout
    assert "vit-fast ViT, wrong: " in done.stdout and "\n2 failed, 8 passed" in done.stdout


@pytest.mark.parametrize(
    "rival, status, said",
    [
        ("wrong", "inaccurate", "\n8 passed"),
        ("missing", "skipped", "SKIPPED"),
        ("failing", "failed", "XFAIL"),
    ],
)
def test_a_rival_beyond_the_rule_or_not_there(tmp_path, rival, status, said):
    broken = BROKEN.format(rival=rival, ours="")
    done = run(tmp_path, "--benchmark-only", "-k", "tokens and not ablation", code=broken)
    assert done.returncode == 0 and said in done.stdout, done.stdout
    case, _ = written(tmp_path)["cases"]
    row = case["rows"][1]
    assert (row["program"], row["status"]) == ("transformers, sdpa", status)
    assert (row["p50_ms"] is not None) == (status == "inaccurate")
    assert {"inaccurate": "allowed", "skipped": "not for this machine", "failed": "no such thing"}[
        status
    ] in row["why"]


def test_runs_only_when_it_is_named():
    found = {}
    for folder in (".", "vit_fast", "benchmarks"):
        words = ("--collect-only", "-q", "-p", "no:cacheprovider", "--ignore=tests", folder)
        command = [sys.executable, "-m", "pytest", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        found[folder] = "test_program[" in done.stdout
    assert found == {".": False, "vit_fast": False, "benchmarks": True}
