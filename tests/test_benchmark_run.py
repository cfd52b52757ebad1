"""python -m benchmarks run: from the command line to the results file."""

import json

import pytest
import torch

from benchmarks import cold_start, measured, operation, run
from benchmarks.registry import cases
from benchmarks.results import LAYERS, NUMBERS, read

KEYS = {
    "name", "layer", "subject", "title", "what", "dtype", "batch", "scenario", "cache", "flops", "bytes", "count",
    "baseline", "rows", "drift", "disturbed", "clocks",
}  # fmt: skip


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: programs are timed as they are."""


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch):
    found = {"fp32": {"measured_tflops": 0.5, "nominal_tflops": None}, "copy_gbps": 10.0}
    monkeypatch.setattr(run, "peaks", lambda device, dtypes: found)


def command(tmp_path, *words: str) -> int:
    out = ["--out", str(tmp_path / "toy.json"), "--no-pictures"]
    return run.main(["--suite", "toy", "--device", "cpu", *words, *out])


def test_a_run_writes_a_results_file(tmp_path, capsys):
    assert command(tmp_path, "--only", "qkv", "block") == 0
    data = read(tmp_path / "toy.json")
    assert [c["layer"] for c in data["cases"]] == ["operation", "block"]
    assert data["run"]["suite"] == "toy" and data["run"]["device"] == "cpu"
    assert data["run"]["arguments"].startswith("--suite toy")
    assert data["machine"]["torch"] == torch.__version__ and "openvino" in data["machine"]["rivals"]
    for case in data["cases"]:
        assert set(case) == KEYS and case["layer"] in LAYERS
        for row in case["rows"]:
            assert set(row) == {
                "program", "ours", "status", "why", "accuracy", "samples_ms", "parts", *NUMBERS,
            }  # fmt: skip
    said = capsys.readouterr().out
    assert "[1/2] operation Toy qkv fp32 batch 1: PyTorch" in said and "[2/2]" in said


def test_what_is_wrong_fails_the_run_and_a_time_does_not(tmp_path, monkeypatch, capsys):
    real = operation.Applied.on

    def slow_and_right(self, *args):
        program = real(self, *args)
        return type(program)(lambda *x: [program.call(*x) for _ in range(9)][-1])

    monkeypatch.setattr(operation.Applied, "on", slow_and_right)
    assert command(tmp_path, "--only", "qkv") == 0

    def wrong(self, *args):
        program = real(self, *args)
        return type(program)(lambda *x: program.call(*x) * 1.0001)

    monkeypatch.setattr(operation.Applied, "on", wrong)
    assert command(tmp_path, "--only", "qkv") == 1
    (row,) = (r for r in read(tmp_path / "toy.json")["cases"][0]["rows"] if r["ours"])
    assert row["status"] == "wrong" and row["p50_ms"] is None
    assert "wrong" in capsys.readouterr().out


def test_a_stopped_run_keeps_what_it_has(tmp_path, monkeypatch, capsys):
    real, calls = measured.measure, []

    def stopped(*args):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(measured, "measure", stopped)
    assert command(tmp_path, "--only", "operation") == run.STOPPED
    assert len(read(tmp_path / "toy.json")["cases"]) == 1
    assert "stopped; what was measured until here is kept" in capsys.readouterr().out
    # nothing at all
    (tmp_path / "toy.json").unlink()
    assert command(tmp_path, "--only", "operation") == run.STOPPED
    assert not (tmp_path / "toy.json").exists()


def test_where_nothing_can_be_written_is_known_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "file").touch()
    for out, words in ((tmp_path, "is a folder"), (tmp_path / "file/a.json", "no such file")):
        assert run.main(["--suite", "toy", "--device", "cpu", "--out", str(out)]) == 2
        assert words in capsys.readouterr().err


def test_list_names_the_cases_and_measures_nothing(tmp_path, capsys):
    assert command(tmp_path, "--list") == 0
    assert capsys.readouterr().out.splitlines() == [c.name for c in cases("toy", "cpu")]
    assert not (tmp_path / "toy.json").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--suite", "gpu"], "the suite gpu is for CUDA"),
        (["--only", "nothing at all"], "no such case"),
    ],
)
def test_wrong_calls(tmp_path, capsys, words, said):
    assert command(tmp_path, *words) == 2
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_results_file_is_not_written_over(tmp_path, capsys):
    path = tmp_path / "toy.json"
    path.write_text("a letter")
    assert command(tmp_path, "--only", "qkv") == 2
    assert path.read_text() == "a letter"
    assert "is not JSON" in capsys.readouterr().err


def test_a_case_that_is_none_is_said_to_be_so(tmp_path):
    path = tmp_path / "toy.json"
    whole = {"format": 1, "machine": {}, "run": {}, "method": {}, "peaks": {}}
    for case in ({}, {"rows": 3}, 7):
        path.write_text(json.dumps({**whole, "cases": [case]}))
        with pytest.raises(ValueError, match="its case 0 lacks fields"):
            read(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    assert run.main(["--device", "cuda"]) == 2
    assert "finds no CUDA device" in capsys.readouterr().err


def test_seconds_that_are_no_time(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command(tmp_path, "--seconds", "-1")
    assert "--seconds" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["transformers, sdpa", "vit-fast", "vit-fast ViT"])
def test_a_cold_start_is_a_process(program, tmp_path):
    from benchmarks import subjects

    subjects.make("toy", "tokens").save_pretrained(tmp_path)
    of = dict(folder=str(tmp_path), cls="ViTModel", dtype="float32", device="cpu", batch=1, side=32)
    ms, parts = cold_start.once(program, **of)
    assert set(parts) == {"import", "load", "first call"}
    assert 0 < sum(parts.values()) * 1e3 < ms


def test_a_cold_start_that_fails_says_why(tmp_path):
    of = dict(folder=str(tmp_path), cls="ViTModel", dtype="float32", device="cpu", batch=1, side=32)
    with pytest.raises(RuntimeError, match="exit status 1: .*"):
        cold_start.once("vit-fast", **of)


def test_a_cold_start_that_hangs_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(cold_start, "LONGEST_S", 0.01)
    of = dict(folder=str(tmp_path), cls="ViTModel", dtype="float32", device="cpu", batch=1, side=32)
    with pytest.raises(RuntimeError, match="no answer within 0.01 s"):
        cold_start.once("vit-fast", **of)


def test_the_file_is_never_half_of_one(tmp_path):
    from benchmarks.results import write

    path = tmp_path / "a.json"
    write(path, {"format": 1})
    with pytest.raises(TypeError):
        write(path, {"format": object()})
    assert json.loads(path.read_text()) == {"format": 1}
