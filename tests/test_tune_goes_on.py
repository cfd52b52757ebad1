"""vit-fast tune is stopped, called again, on other versions, in a given time; and its switches."""

import itertools
import json
from dataclasses import asdict, replace

import pytest
import torch

pytest.importorskip("triton")
import fake_tuning
from fake_tuning import CASES, CPU, GPU, SLOW, VERSIONS, FakeTimer, run, times
from vit_fast.kernels import linear_tiles, tables, tuning
from vit_fast.tune import SWITCHES, Unusable, tune
from vit_fast.tune_cases import LAUNCH

stand_ins = pytest.fixture(autouse=True)(fake_tuning.stand_ins)
timer = pytest.fixture(fake_tuning.timer)


def test_an_interrupt_loses_nothing_and_the_next_call_goes_on(timer, stand_ins):
    class Stops(FakeTimer):
        def __call__(self, programs, sets, rounds):
            if len(self.calls) == 4:  # two operations take two calls each
                raise KeyboardInterrupt
            return super().__call__(programs, sets, rounds)

    with pytest.raises(KeyboardInterrupt):
        run(Stops(stand_ins, times), CASES)
    kept = json.loads(tables.user_path(GPU.name).read_text())["entries"]
    assert [e["shape"] for e in kept] == [c.shape for c in CASES[:2]]
    report, table = run(timer, CASES)
    assert (report.kept, report.measured, report.left) == (2, 8, 0)
    assert table["entries"][:2] == kept
    assert len(table["entries"]) == 10
    report, _ = run(timer, CASES)
    assert (report.kept, report.measured) == (10, 0)


def test_another_model_s_entries_stay(timer):
    run(timer, CASES[:3])
    _, table = run(timer, CASES[5:6])
    assert [e["shape"] for e in table["entries"]] == [c.shape for c in (*CASES[:3], CASES[5])]


def test_a_rule_that_has_changed_is_measured_again(timer, monkeypatch):
    run(timer)
    monkeypatch.setattr(linear_tiles, "launch_config", lambda *shape: SLOW)
    report, table = run(timer)
    assert (report.measured, len(table["entries"])) == (1, 1)
    assert table["entries"][0]["rule"] == asdict(SLOW)


def test_a_table_of_other_versions_or_a_broken_one_is_written_anew(timer):
    path = tables.user_path(GPU.name)
    run(timer, CASES[:2])
    report = tune(CASES[2:3], GPU, CPU, timer, path, {**VERSIONS, "driver": "999"}, switches={})
    assert "is written anew: it was measured with" in report.notes[0]
    assert len(json.loads(path.read_text())["entries"]) == 1
    path.write_text("{")
    report, table = run(timer)
    assert "is written anew: it is not JSON" in report.notes[0]
    assert len(table["entries"]) == 1


def test_it_stays_inside_its_minutes(timer):
    clock = itertools.count(
        0, 20
    ).__next__  # seconds; looked at once at the start, once an operation
    report, table = run(timer, CASES, minutes=1, clock=clock)
    assert (report.measured, report.left) == (2, 8)
    assert len(table["entries"]) == 2


def test_progress_sees_every_operation(timer):
    seen = []

    def progress(jobs):
        seen.extend(jobs)
        return jobs

    run(timer, CASES, progress=progress)
    assert len(seen) == 10


@pytest.mark.parametrize("on, faster", [(8.0, True), (10.0, False), (12.0, False)])
def test_switches(stand_ins, on, faster):
    class Timer(FakeTimer):
        def __call__(self, programs, sets, rounds):
            return [[program(0)] * rounds for program in programs]

    path = tables.user_path(GPU.name)
    switches = {"pdl": lambda device, gpu: (lambda i: 10.0, lambda i: on)}
    timer = Timer(stand_ins, times)
    report = tune([], GPU, CPU, timer, path, VERSIONS, switches=switches)
    assert report.measured == 1
    assert tuning.switch(GPU, "pdl") is faster
    report = tune([], GPU, CPU, timer, path, VERSIONS, switches=switches)
    assert (report.kept, report.measured) == (1, 0)


@pytest.mark.parametrize("early", [True, False])
def test_all_behind_pdl_is_measured_as_it_will_be_launched(timer, monkeypatch, early):
    """Whatever an earlier table says; and when the switches were measured in an earlier call."""
    seen, asked = [], []
    for op, launch in LAUNCH.items():

        def run_it(*args, gpu, config, launch=launch):
            seen.append(gpu.pdl)
            return launch(*args, gpu=replace(gpu, pdl=False), config=config)

        monkeypatch.setitem(LAUNCH, op, run_it)

    def switch(device, gpu):
        asked.append(gpu.pdl)
        return (lambda i: 10.0, lambda i: 10.0)

    def times_of(programs, sets, rounds):
        if asked and not seen:
            return [[10.0] * rounds, [8.0 if early else 12.0] * rounds]
        for program in programs:
            program(0)
        return [[10.0] * rounds for _ in programs]

    monkeypatch.setattr(FakeTimer, "__call__", lambda self, *args: times_of(*args))
    path, gpu = tables.user_path(GPU.name), replace(GPU, pdl=not early)
    switches = {"pdl": switch, "fold": switch}
    tune(CASES[:1], gpu, CPU, timer, path, VERSIONS, switches=switches)
    assert asked == [False, early]
    assert set(seen) == {early}
    seen.clear()
    tune(CASES[1:2], gpu, CPU, timer, path, VERSIONS, switches=switches)
    assert len(asked) == 2 and set(seen) == {early}


@pytest.mark.parametrize("at", ["the switch", "an operation"])
def test_what_cannot_be_timed_costs_no_more_than_itself(timer, monkeypatch, at):
    """A launch attribute that a driver does not know, a capture that fails: the rest is measured."""

    def refused(device, gpu):
        raise RuntimeError("CUDA error: operation not supported")

    def once(self, programs, sets, rounds, call=FakeTimer.__call__):
        if not self.calls and at == "an operation":
            self.calls.append(())
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # fmt: skip
        return call(self, programs, sets, rounds)

    monkeypatch.setattr(FakeTimer, "__call__", once)
    path = tables.user_path(GPU.name)
    switches = {"pdl": refused} if at == "the switch" else {}
    report = tune(CASES[:2], GPU, CPU, timer, path, VERSIONS, switches=switches)
    assert report.left == 0
    (note,) = report.notes
    if at == "the switch":
        assert "pdl: stays off, RuntimeError: CUDA error: operation not supported" in note
        assert tuning.switch(GPU, "pdl") is False
        assert report.measured == 3
        report = tune(CASES[:2], GPU, CPU, timer, path, VERSIONS, switches=switches)
        assert (report.kept, report.measured) == (3, 0)
    else:
        assert CASES[0].name in note and "during capture" in note
        assert report.measured == 1
        report = tune(CASES[:2], GPU, CPU, timer, path, VERSIONS, switches=switches)
        assert (report.kept, report.measured) == (1, 1)


def test_a_timing_that_breaks_the_gpu_ends_the_process(timer, monkeypatch):
    def dead(*args):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    path, switches = tables.user_path(GPU.name), {"pdl": dead}
    with pytest.raises(Unusable, match="pdl: stays off, .*The GPU is left unusable"):
        tune([], GPU, torch.device("cuda"), timer, path, VERSIONS, switches=switches)
    assert tune([], GPU, CPU, timer, path, VERSIONS, switches=switches).kept == 1


def test_the_switches_that_are_measured_can_be_measured():
    for name, programs in SWITCHES.items():
        assert callable(programs), name


def test_a_folder_that_cannot_be_written_to_is_found_out_before_anything_is_measured(timer, tmp_path):  # fmt: skip
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        tune(CASES, GPU, CPU, timer, tmp_path / "file/table.json", VERSIONS, switches={})
    assert timer.calls == []
