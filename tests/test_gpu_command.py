"""The GPU program as a command: a dry run of everything, an interrupt, calls that are wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.results import source

ROOT = Path(__file__).resolve().parents[1]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_dry_run(tmp_path):
    """Every section on the CPU; then the same command finds nothing left to do; then a table of it."""
    pytest.importorskip("triton")
    out = str(tmp_path / "out")
    done = run("gpu", "--dry-run", "--minutes", "30", "--out", out)
    data = json.loads((tmp_path / "out" / "gpu.json").read_text())
    broken = {key: row for key, row in data["cells"].items() if row.get("ours") and row["status"] != "ok"}  # fmt: skip
    assert done.returncode == 0 and not broken, (broken, done.stdout[-3000:], done.stderr[-3000:])
    sections = {key.split("/")[0] for key in data["cells"]}
    untimed, timed = (
        {"correctness", "models", "families", "checks"},
        {"ceilings", "kernels", "candidates"},
    )
    assert sections == untimed | timed | {"end_to_end"}
    assert not data["skipped"]
    assert data["machine"]["dry_run"] and data["machine"]["source"] == source()
    for key, row in data["cells"].items():
        if key.startswith(("correctness/", "models/")):
            assert row["error"] <= row["allowed"] and row["row_error"] <= row["row_allowed"], key
        if key.startswith(("ceilings/", "kernels/", "candidates/")) and "us" in row:
            assert min(row["us"].values()) > 0, key
    (row,) = (r for k, r in data["cells"].items() if k.endswith("batch 1 transformers"))
    assert {"vit-fast", "transformers, sdpa", "transformers, eager"} <= row["programs"].keys()
    assert all(p["error"] <= p["allowed"] for p in row["programs"].values())
    assert not any(row["status"] == "failed" for row in data["cells"].values())
    summary = done.stdout[done.stdout.index("== ") :]
    assert "need a GPU: left out" in summary and "did not come out" not in summary
    assert summary.count("mean nothing") == 1
    assert "composed bound" in summary and "torch.compile default" in summary

    again = run("gpu", "--dry-run", "--out", out, "--only", "ceilings")
    assert again.returncode == 0 and "[1/" not in again.stdout, again.stdout + again.stderr
    table = run("table", str(tmp_path / "out" / "gpu.json"))
    assert table.returncode == 0, table.stderr
    assert f"| {row['batch']} | {row['programs']['vit-fast']['images_s']:,.0f} |" in table.stdout


def test_commands():
    assert run("nonsense").returncode == 2
    assert "roofline" in run("--help").stdout
    bad = run("gpu", "--dry-run", "--minutes", "0")
    assert bad.returncode == 2 and "a positive number is needed" in bad.stderr


def test_an_out_that_cannot_be(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "below"):
        bad = run("gpu", "--dry-run", "--out", str(out))
        assert bad.returncode == 2 and f"error: --out {out}: " in bad.stderr, bad.stderr
        assert "Traceback" not in bad.stderr
    recorded = ROOT / "benchmarks" / "results" / "toy"
    bad = run("gpu", "--dry-run", "--out", str(recorded))
    assert bad.returncode == 2 and "a dry run's numbers do not go to" in bad.stderr
    assert not recorded.exists()
    bad = run("table", str(file))
    assert bad.returncode == 2 and "Traceback" not in bad.stderr


def test_the_start_counts_from_before_the_imports():
    code = (
        "import sys, benchmarks.gpu; assert 'torch' not in sys.modules; "
        "from benchmarks.gpu import program; assert program.BEGUN is benchmarks.gpu.BEGUN"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_interrupt_keeps_what_is_done_and_prints_the_summary(tmp_path):
    pytest.importorskip("triton")
    words = ["gpu", "--dry-run", "--out", str(tmp_path), "--only", "correctness"]
    command = [sys.executable, "-m", "benchmarks", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("[2/"):
                process.terminate()
                break
        said += process.stdout.readlines()
    assert process.returncode == 130
    data = json.loads((tmp_path / "gpu.json").read_text())
    assert len(data["cells"]) >= 2 and data["skipped"] and "ended" in data["runs"][0]
    assert "interrupted\n" in said and any(line.startswith("== ") for line in said)
