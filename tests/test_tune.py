"""vit-fast tune without a GPU: what is measured, what is written, and what never is."""

import itertools
from dataclasses import asdict, replace

import pytest
import torch

pytest.importorskip("triton")
import triton

import fake_tuning
from fake_tuning import (
    CANDIDATES,
    CASES,
    CPU,
    FAST,
    GPU,
    LINEAR,
    RULE,
    SLOW,
    TOY,
    VERSIONS,
    FakeTimer,
    run,
    times,
)
from vit_fast import tune as tuner
from vit_fast.kernels import attention, linear, linear_tiles, tuning
from vit_fast.tune import Unusable, beats, spread
from vit_fast.tune_cases import LAUNCH, Inputs, cases_of, set_up

stand_ins = pytest.fixture(autouse=True)(fake_tuning.stand_ins)
timer = pytest.fixture(fake_tuning.timer)


def test_the_winner_is_written_and_looked_up(timer):
    assert tuning.tuned(GPU, "linear", **LINEAR.shape) is None
    report, table = run(timer)
    assert (report.measured, report.better, report.kept, report.left) == (1, 1, 0, 0)
    assert report.notes == []
    assert tuning.tuned(GPU, "linear", **LINEAR.shape) == asdict(FAST)
    assert tuning.which_table(GPU).kind == "user"
    (entry,) = table["entries"]
    assert (entry["best_us"], entry["rule_us"], entry["tried"]) == (8.0, 10.0, 3)
    assert entry["rule"] == asdict(RULE)
    assert table["versions"] == VERSIONS


def test_all_are_screened_and_the_best_are_timed_again_beside_the_rule(stand_ins, monkeypatch):
    many = [replace(RULE, block_m=m, block_n=n) for m in (16, 32, 64) for n in (16, 32, 64)]
    monkeypatch.setattr(linear_tiles, "candidates", lambda *shape: tuple(many))
    timer = FakeTimer(stand_ins, lambda c: c.block_m + c.block_n / 100)
    _, table = run(timer)
    (screened, few), (finalists, rounds) = timer.calls
    assert sorted(screened, key=str) == sorted(many, key=str)
    assert finalists == [RULE, *(replace(RULE, block_m=16, block_n=n) for n in (16, 32, 64))]
    assert few < rounds
    assert table["entries"][0]["config"] == asdict(replace(RULE, block_m=16, block_n=16))


@pytest.mark.parametrize("jitter, wins", [(0.01, True), (0.3, False)])
def test_a_gain_within_the_spread_is_none(stand_ins, jitter, wins):
    report, table = run(FakeTimer(stand_ins, times, jitter))
    assert (table["entries"][0]["config"] is not None) == wins
    assert (tuning.tuned(GPU, "linear", **LINEAR.shape) is not None) == wins
    assert report.better == wins


def test_what_a_spread_is():
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0]) == pytest.approx(4.0)
    assert beats([8.0] * 5, [9.0] * 5)
    assert not beats([9.0] * 5, [8.0] * 5)
    assert not beats([8.0] * 5, [8.0] * 5)
    assert not beats([8.0] * 5, [5.0, 9.0, 9.0, 9.0, 13.0])
    assert not beats([5.0, 8.0, 8.0, 8.0, 11.0], [9.0, 9.0, 9.0, 9.0, 9.0])


def spoiled(monkeypatch, config, how):
    launch = LAUNCH["linear"]

    def run(*args, gpu, config):
        y = launch(*args, gpu=gpu, config=config)
        return how(y) if config == spoiled_config else y

    spoiled_config = config
    monkeypatch.setitem(LAUNCH, "linear", run)


def raise_(error):
    raise error


TOO_LARGE = triton.OutOfResources(300_000, 232_448, "shared memory")
FAULTS = {
    "a wrong row": (lambda y: y.index_fill(0, torch.tensor([9]), 0.0), "its largest error is"),
    "all a little": (lambda y: y * 1.0001, "error"),
    "a row not written": (
        lambda y: y.index_copy(0, torch.tensor([3]), torch.empty(1, 96)),
        "not written everywhere",
    ),
    "too large": (lambda y: raise_(TOO_LARGE), "OutOfResources: out of resource: shared memory"),
    "not compiled": (lambda y: raise_(RuntimeError("PassManager")), "RuntimeError: PassManager"),
}


@pytest.mark.parametrize("how, why", FAULTS.values(), ids=FAULTS)
def test_a_wrong_or_failing_candidate_is_never_written(timer, monkeypatch, how, why):
    spoiled(monkeypatch, FAST, how)
    report, table = run(timer)
    assert table["entries"][0]["config"] is None, "the rule beats SLOW"
    assert FAST not in itertools.chain.from_iterable(configs for configs, _ in timer.calls)
    (note,) = report.notes
    assert why in note
    assert str(FAST) in note
    (failed,) = table["failed"]
    assert failed["config"] == asdict(FAST)
    assert why in failed["why"]
    timer.launched.clear()
    monkeypatch.setattr(linear_tiles, "launch_config", lambda *shape: SLOW)
    run(timer)
    assert FAST not in timer.launched, "what failed is not tried again"


def test_a_rule_whose_own_choice_fails_is_beaten_by_what_works(timer, monkeypatch):
    spoiled(monkeypatch, RULE, FAULTS["too large"][0])
    monkeypatch.setattr(linear_tiles, "candidates", lambda *shape: (SLOW,))
    _, table = run(timer)
    assert table["entries"][0]["config"] == asdict(SLOW)
    assert table["entries"][0]["rule_us"] is None


def test_where_nothing_works_nothing_is_written(timer, monkeypatch):
    monkeypatch.setitem(LAUNCH, "linear", lambda *args, gpu, config: raise_(RuntimeError("no")))
    report, table = run(timer)
    assert table["entries"] == []
    assert (report.measured, report.left) == (0, 0)
    assert "no config of it works" in report.notes[-1]


def test_a_mistake_of_ours_is_no_failing_candidate(timer, monkeypatch):
    monkeypatch.setitem(LAUNCH, "linear", lambda *args, gpu, config: raise_(KeyError("field")))
    with pytest.raises(KeyError):
        run(timer)


def test_out_of_memory_leaves_an_operation_out_for_this_time(timer, monkeypatch):
    full = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(tuner, "set_up", lambda *args: raise_(full))
    report, table = run(timer)
    assert "does not fit into the memory" in report.notes[0]
    monkeypatch.undo()
    spoiled(monkeypatch, FAST, lambda y: raise_(full))
    monkeypatch.setattr(linear_tiles, "candidates", lambda *shape: CANDIDATES)
    monkeypatch.setattr(linear_tiles, "launch_config", lambda *shape: RULE)
    notes, failed = [], []
    assert tuner.measure(LINEAR, GPU, CPU, timer, failed, notes) is None
    assert (len(notes), failed, table["failed"]) == (1, [], [])


def test_a_candidate_that_breaks_the_gpu_ends_the_process_and_is_remembered(monkeypatch):
    def dead(device=None):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    inputs = set_up(LINEAR, CPU, 1)
    monkeypatch.setattr(Inputs, "why_wrong", lambda self, config: dead())
    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    failed, notes = [], []
    with pytest.raises(Unusable, match="the same command goes on without this config"):
        tuner._why_wrong(inputs, FAST, torch.device("cuda"), failed, notes)
    assert failed[0]["config"] == asdict(FAST)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert "illegal" in tuner._why_wrong(inputs, FAST, torch.device("cuda"), failed, notes)


def test_every_operation_of_a_model(timer):
    report, table = run(timer, CASES)
    assert (report.measured, len(table["entries"])) == (10, 10)
    for case in CASES:
        found = tuning.tuned(GPU, case.op, **case.shape)
        if case.op != "attention":
            assert linear.Config(**found) == FAST
        else:
            assert attention.Config(**found).num_warps == 8


def test_half_precision(timer):
    (case, *_) = cases_of([TOY], [1], [torch.float16])
    _, table = run(timer, [case])
    assert table["entries"][0]["shape"]["dtype"] == "fp16"
