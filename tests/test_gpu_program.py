"""The GPU program: cells that fail, crash, hang or spoil their process; minutes, order, resuming."""

import json
import os
import sys
import time
import types
from dataclasses import dataclass

import pytest

from benchmarks.gpu.cells import Cell, chosen
from benchmarks.gpu.results import Results, smi, source
from benchmarks.gpu.runner import Runner

MACHINE = {"device": "a GPU", "torch": "1", "source": "abc"}


@dataclass(frozen=True)
class Bare:
    """A setting whose processes import nothing."""

    workers: int = 1

    def prepare(self) -> None:
        pass


def fine(setting, value=1):
    begin = time.time()
    time.sleep(0.05)
    return {"value": value, "pid": os.getpid(), "from": begin, "to": time.time()}


def wrong(setting):
    return {"wrong": "largest error 3, allowed 1"}


def raises(setting):
    raise KeyError("no such thing")


def crashes(setting):
    print("last words", flush=True)
    os._exit(11)


def hangs(setting):
    time.sleep(60)


def spoils(setting):
    """What an illegal access does: every later call of CUDA in this process fails."""

    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
    return {}


def told(setting, passed):
    return {"passed": list(passed)}


def cell(name, run=fine, **how):
    how = {"seconds": 0.0, "limit": 30.0, **how}
    return Cell("fakes", name, run, **how)


def carry_out(tmp_path, cells, seconds=60.0, workers=1, machine=MACHINE):
    results, said = Results.open(tmp_path, machine), []
    with Runner(Bare(workers), tmp_path / "gpu.log", time.monotonic() + seconds, said.append) as runner:  # fmt: skip
        runner.run(cells, results)
    assert json.loads(results.path.read_text()) == results.data
    return results, said


def test_whatever_becomes_of_a_cell_the_next_one_runs(tmp_path):
    cells = [
        cell("wrong", wrong),
        cell("raises", raises),
        cell("crashes", crashes),
        cell("hangs", hangs, limit=0.3),
        cell("spoils", spoils),
        cell("fine"),
    ]
    results, said = carry_out(tmp_path, cells)
    found = {key.removeprefix("fakes/"): row for key, row in results.cells.items()}
    assert [(name, row["status"]) for name, row in found.items()] == [
        ("wrong", "wrong"),
        ("raises", "failed"),
        ("crashes", "crashed"),
        ("hangs", "timed out"),
        ("spoils", "failed"),
        ("fine", "ok"),
    ]
    assert found["raises"]["why"] == "KeyError: 'no such thing'"
    assert "exit code 11" in found["crashes"]["why"]
    assert "illegal memory access" in found["spoils"]["why"]
    assert "limit" in found["hangs"]["why"] and found["hangs"]["seconds"] < 20
    assert len(said) == 6 and said[3].startswith("[4/6] fakes/hangs: timed out in ")
    log = (tmp_path / "gpu.log").read_text()
    assert "last words" in log and "Traceback" in log


def test_a_process_lives_on_after_a_failure_that_left_it_usable(tmp_path):
    cells = [cell("first"), cell("raises", raises), cell("second"), cell("spoils", spoils), cell("third")]  # fmt: skip
    found = carry_out(tmp_path, cells)[0].cells
    first, second, third = (found[f"fakes/{n}"]["pid"] for n in ("first", "second", "third"))
    assert first == second != third


def test_what_is_timed_runs_alone(tmp_path):
    cells = [cell(f"c{i}", alone=i % 4 == 3) for i in range(12)]
    results, _ = carry_out(tmp_path, cells, workers=3)
    spans = {c.key: (results.cells[c.key]["from"], results.cells[c.key]["to"]) for c in cells}
    for c in cells:
        others = [spans[o.key] for o in cells if o is not c]
        overlaps = sum(a < spans[c.key][1] and spans[c.key][0] < b for a, b in others)
        assert not (c.alone and overlaps), c.key
    assert len({row["pid"] for row in results.cells.values()}) > 1


def test_minutes(tmp_path):
    """What does not fit is skipped, what is under way at the end is cut, and both run the next time."""
    cells = [cell("fine"), cell("long", seconds=1e6), cell("hangs", hangs), cell("late")]
    begin = time.monotonic()
    results, _ = carry_out(tmp_path, cells, seconds=4)
    assert time.monotonic() - begin < 10
    assert {key: row["status"] for key, row in results.cells.items()} == {
        "fakes/fine": "ok",
        "fakes/hangs": "cut",
    }
    assert results.data["skipped"] == ["fakes/long", "fakes/late"]
    at = results.cells["fakes/fine"]["at"]
    results, said = carry_out(tmp_path, [cell("fine"), cell("hangs"), cell("late")])
    assert [line.split(":")[0] for line in said] == ["[1/2] fakes/hangs", "[2/2] fakes/late"]
    assert results.cells["fakes/fine"]["at"] == at and not results.data["skipped"]


def test_needs_are_told_what_passed(tmp_path):
    needs = ("fakes/good", "fakes/bad", "fakes/never")
    cells = [cell("good"), cell("bad", wrong), cell("after", told, needs=needs)]
    assert carry_out(tmp_path, cells)[0].cells["fakes/after"]["passed"] == ["fakes/good"]


def test_another_machine_another_file(tmp_path):
    cells = [cell("ours", ours=True), cell("vendor's", vendor=True)]
    first, _ = carry_out(tmp_path, cells)
    assert first.path.name == "gpu.json"
    assert Results.open(tmp_path, MACHINE).path == first.path
    changed = Results.open(tmp_path, MACHINE | {"source": "abd"})
    assert changed.path.name == "gpu-2.json" and list(changed.cells) == ["fakes/vendor's"]
    other = Results.open(tmp_path, MACHINE | {"torch": "2"})
    assert other.path.name == "gpu-2.json" and not other.cells


def test_a_half_written_file_is_not_read(tmp_path):
    first, _ = carry_out(tmp_path, [cell("fine")])
    first.path.with_suffix(".tmp").write_text('{"machine": {')
    assert list(Results.open(tmp_path, MACHINE).cells) == ["fakes/fine"]


def test_a_process_that_does_not_start(tmp_path):
    runner = Runner(NoStart(), tmp_path / "gpu.log", time.monotonic() + 60)
    with (
        runner,
        pytest.raises(RuntimeError, match="(?s)a worker process did not start.*gpu.log.*no triton"),
    ):
        runner.run([cell("fine")], Results.open(tmp_path, MACHINE))
    assert json.loads((tmp_path / "gpu.json").read_text())["skipped"] == ["fakes/fine"]


class NoStart(Bare):
    def prepare(self) -> None:
        raise ImportError("no triton")


def test_chosen():
    a, b, c = cell("a one", rank=2), cell("b", rank=1), cell("c", rank=3, needs=("fakes/b",))
    assert chosen([a, b, c], []) == [b, a, c]
    assert chosen([a, b, c], ["fakes:one"]) == [a]
    assert chosen([a, b, c], ["fakes:c"]) == [b, c]
    with pytest.raises(ValueError, match="--only fake: no such cell; .* a section of fakes"):
        chosen([a], ["fake"])


def test_source_is_that_of_what_is_measured(tmp_path, monkeypatch):
    for folder in ("kernels", "vit_fast"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("1")
    monkeypatch.setattr("benchmarks.gpu.results.ROOT", tmp_path)
    before = source()
    (tmp_path / "notes.md").write_text("2")
    assert source() == before
    (tmp_path / "kernels" / "a.py").write_text("2")
    assert source() != before


def test_a_file_that_is_no_results_file_is_left_alone(tmp_path):
    row = '{"machine": {}, "runs": [], "skipped": [], "cells": {"a": 1}}'
    texts = ["{", "[1]", '{"machine": {}}', row]
    for number, text in enumerate(texts, start=1):
        (tmp_path / f"gpu-{number}.json").write_text(text)
    said = []
    results = Results.open(tmp_path, MACHINE, said.append)
    assert results.path.name == "gpu-5.json" and len(said) == 4
    assert all("is left as it is, it cannot be read: " in line for line in said)
    assert [(tmp_path / f"gpu-{n}.json").read_text() for n in (1, 2, 3, 4)] == texts


def test_the_state_of_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert smi() == {}
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho '580.159.03, P0, 1980, 3201, 1980, 650.1, 700.00, 44'\n")
    script.chmod(0o755)
    found = smi()
    assert found["driver_version"] == "580.159.03" and found["clocks.sm"] == "1980"
    assert found["temperature.gpu"] == "44"
    script.write_text("no program")
    assert "error" in smi()
    script.write_text("#!/bin/sh\necho 'Field is not a valid field to query.'\nexit 2\n")
    assert "not a valid field" in smi()["error"]
