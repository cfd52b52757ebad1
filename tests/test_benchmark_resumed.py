"""python -m benchmarks run --resume: a file is gone on with, and nothing else gets into it."""

import copy

import pytest

from benchmark_results import results
from benchmarks import measured, run
from benchmarks.registry import cases
from benchmarks.reporting.words import setting
from benchmarks.results import commits, read, write
from benchmarks.resumed import gone_on, left, put


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: programs are timed as they are."""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """command("--resume") -> exit status; command.measured: the names of the cases that were, in order."""
    found = {"fp32": {"measured_tflops": 0.5, "nominal_tflops": None}, "copy_gbps": 10.0}
    monkeypatch.setattr(run, "peaks", lambda device, dtypes: found)

    def fake(case, device, method, peaks, say):
        command.measured.append(case.name)
        if len(command.measured) == command.stop:
            raise KeyboardInterrupt
        return measured.described(case, device) | {"disturbed": command.disturbed}

    def command(*words: str) -> int:
        which = ["--suite", "toy", "--device", "cpu", "--only", "operation", "block"]
        command.measured = []
        return run.main([*which, *words, "--out", str(command.path), "--no-pictures"])

    command.stop, command.disturbed, command.path = None, "", tmp_path / "toy.json"
    monkeypatch.setattr(measured, "measure", fake)
    return command


NAMES = [c.name for c in cases("toy", "cpu", ("operation", "block"))]


def names(path) -> list[str]:
    return [case["name"] for case in read(path)["cases"]]


def test_it_goes_on_where_it_was_stopped(command, capsys):
    command.stop = 3
    assert command() == run.STOPPED
    assert "--resume goes on" in capsys.readouterr().out
    assert names(command.path) == NAMES[:2]
    command.stop = None
    assert command("--resume") == 0
    assert command.measured == NAMES[2:] and names(command.path) == NAMES
    said = capsys.readouterr().out
    assert f"2 of {len(NAMES)} cases are in" in said and f"[1/{len(NAMES) - 2}] {NAMES[2]}" in said
    # nothing is left, and that is no failure
    assert command("--resume") == 0 and command.measured == []


def test_what_was_disturbed_is_measured_again(command):
    assert command() == 0
    kept = read(command.path)
    kept["cases"][1]["disturbed"] = "hot"
    write(command.path, kept)
    command.disturbed = "hotter"
    assert command("--resume") == 0
    assert command.measured == [NAMES[1]] and names(command.path) == NAMES
    assert [c["disturbed"] for c in read(command.path)["cases"]][:3] == ["", "hotter", ""]


def test_without_it_everything_is_measured(command):
    assert command() == command() == 0
    assert command.measured == NAMES


def test_without_a_file_it_begins_one(command):
    assert command("--resume") == 0 and command.measured == NAMES
    assert "resumed" not in read(command.path)["run"]


@pytest.mark.parametrize(
    "part, key, value, said",
    [
        ("machine", "torch", "1.0", "machine torch '1.0', this run"),
        ("machine", "rivals", {"openvino": "1"}, "machine rivals"),
        ("method", "seconds", 99.0, "method seconds 99.0, this run 0.0"),
        ("run", "suite", "quick", "run suite 'quick', this run 'toy'"),
        ("run", "front", "pytest", "run front 'pytest', this run 'run'"),
    ],
)
def test_what_is_of_another_kind_stays_out(command, capsys, part, key, value, said):
    assert command() == 0
    kept = read(command.path)
    kept[part][key] = value
    write(command.path, kept)
    before = command.path.read_bytes()
    assert command("--resume") == 2
    assert said in capsys.readouterr().err and command.measured == []
    assert command.path.read_bytes() == before


def test_every_commit_is_named(tmp_path):
    old, path = results(), tmp_path / "old.json"
    old["run"]["commit"] = "a" * 12
    write(path, old)
    begun = {**copy.deepcopy(old), "cases": []}
    begun["run"] |= {"commit": "b" * 12, "at": "2027-01-01T00:00:00Z"}
    found = gone_on(path, begun)
    assert found["cases"] == old["cases"]
    assert found["run"]["resumed"] == [{"at": "2027-01-01T00:00:00Z", "commit": "b" * 12}]
    assert commits(found) == "a" * 12 + ", " + "b" * 12
    assert "commit aaaaaaaaaa, bbbbbbbbbb" in setting(found)
    found["run"]["resumed"].append({"at": None, "commit": "a" * 12})
    assert commits(found, 3) == "aaa, bbb"


def test_a_case_takes_its_place():
    chosen = cases("toy", "cpu")
    found = {"cases": [{"name": "other", "disturbed": ""}]}
    for i in (3, 1, 2):
        put(found, {"name": chosen[i].name, "disturbed": "x" if i == 1 else ""}, chosen)
    assert [c["name"] for c in found["cases"]] == [*(chosen[i].name for i in (1, 2, 3)), "other"]
    assert left(chosen, found) == [chosen[0], chosen[1], *chosen[4:]]
