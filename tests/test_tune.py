"""vit-fast tune without a GPU: a timer that is told the times, kernels in the interpreter, stand-ins for candidates."""

import itertools
import json
from dataclasses import asdict, replace

import pytest
import torch

pytest.importorskip("triton")
import triton

from vit_fast import tune as tuner
from vit_fast.kernels import attention, linear, tables, tuning
from vit_fast.kernels.tuning import KNOWN
from vit_fast.tune import SWITCHES, Unusable, beats, spread, tune
from vit_fast.tune_cases import Case, Inputs, cases_of, set_up
from vit_fast.workload import Model

GPU, CPU = KNOWN["sm_90"], torch.device("cpu")
TOY = Model("toy", 32, 8, 64, 2, 2, 96)
VERSIONS = {"triton": triton.__version__, "torch": torch.__version__}

RULE = linear.Config(block_m=32, block_n=32, block_k=32, num_warps=4, num_stages=1)
FAST, SLOW = replace(RULE, block_m=16), replace(RULE, block_n=64)
CANDIDATES = (FAST, RULE, SLOW)
LINEAR = Case("linear", dict(M=17, N=96, K=64, dtype="fp32", epilogue="gelu"), "gelu")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, tmp_path):
    """Three candidates of linear, two of attention; and what was launched, in order."""
    launched = []

    def recorded(module):
        launch = module.launch

        def run(*args, config=None):
            launched.append(config)
            return launch(*args, config=config)

        monkeypatch.setattr(module, "launch", run)

    recorded(linear)
    recorded(attention)
    rule = attention.launch_config
    monkeypatch.setattr(linear, "launch_config", lambda *shape: RULE)
    monkeypatch.setattr(linear, "candidates", lambda *shape: CANDIDATES, raising=False)
    others = lambda *shape: (replace(rule(*shape), num_warps=8), rule(*shape))  # noqa: E731
    monkeypatch.setattr(attention, "candidates", others, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning.forget()
    yield launched
    tuning.forget()


class FakeTimer:
    """Launches each program on each set, and says time_of(config)."""

    def __init__(self, launched, time_of, jitter=0.01):
        self.launched, self.time_of, self.jitter = launched, time_of, jitter
        self.calls = []  # (configs, rounds)

    def sets(self, nbytes):
        return 2

    def __call__(self, programs, sets, rounds):
        samples, configs = [], []
        for program in programs:
            for i in range(sets):
                program(i)
            configs.append(self.launched[-1])
            time = self.time_of(configs[-1])
            samples.append([time * (1 + self.jitter * (r % 3 - 1)) for r in range(rounds)])
        self.calls.append((configs, rounds))
        return samples


def times(config):
    """In microseconds: 10, FAST 8, SLOW 12; an attention of more warps is faster."""
    return {FAST: 8.0, SLOW: 12.0, RULE: 10.0}.get(config, 100.0 / config.num_warps)


@pytest.fixture
def timer(stand_ins):
    return FakeTimer(stand_ins, times)


def run(timer, cases=(LINEAR,), **options):
    path = tables.user_path(GPU.name)
    report = tune(cases, GPU, CPU, timer, path, VERSIONS, switches={}, **options)
    return report, json.loads(path.read_text())


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
    monkeypatch.setattr(linear, "candidates", lambda *shape: tuple(many))
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
    assert not beats([5.0, 8.0, 8.0, 8.0, 11.0], [9.0, 9.0, 9.0, 9.0, 9.0])


def spoiled(monkeypatch, config, how):
    launch = linear.launch

    def run(*args, config=None):
        y = launch(*args, config=config)
        return how(y) if config == spoiled_config else y

    spoiled_config = config
    monkeypatch.setattr(linear, "launch", run)


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
    monkeypatch.setattr(linear, "launch_config", lambda *shape: SLOW)
    run(timer)
    assert FAST not in timer.launched, "what failed is not tried again"


def test_a_rule_whose_own_choice_fails_is_beaten_by_what_works(timer, monkeypatch):
    spoiled(monkeypatch, RULE, FAULTS["too large"][0])
    monkeypatch.setattr(linear, "candidates", lambda *shape: (SLOW,))
    _, table = run(timer)
    assert table["entries"][0]["config"] == asdict(SLOW)
    assert table["entries"][0]["rule_us"] is None


def test_where_nothing_works_nothing_is_written(timer, monkeypatch):
    monkeypatch.setattr(linear, "launch", lambda *args, config: raise_(RuntimeError("no")))
    report, table = run(timer)
    assert table["entries"] == []
    assert (report.measured, report.left) == (0, 0)
    assert "no config of it works" in report.notes[-1]


def test_a_mistake_of_ours_is_no_failing_candidate(timer, monkeypatch):
    monkeypatch.setattr(linear, "launch", lambda *args, config: raise_(KeyError("field")))
    with pytest.raises(KeyError):
        run(timer)


def test_out_of_memory_leaves_an_operation_out_for_this_time(timer, monkeypatch):
    full = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(tuner, "set_up", lambda *args: raise_(full))
    report, table = run(timer)
    assert "does not fit into the memory" in report.notes[0]
    monkeypatch.undo()
    spoiled(monkeypatch, FAST, lambda y: raise_(full))
    monkeypatch.setattr(linear, "candidates", lambda *shape: CANDIDATES, raising=False)
    monkeypatch.setattr(linear, "launch_config", lambda *shape: RULE)
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


CASES = cases_of([TOY], [1, 2], [torch.float32])


def test_every_operation_of_a_model(timer):
    report, table = run(timer, CASES)
    assert (report.measured, len(table["entries"])) == (10, 10)
    for case in CASES:
        found = tuning.tuned(GPU, case.op, **case.shape)
        if case.op == "linear":
            assert linear.Config(**found) == FAST
        else:
            assert attention.Config(**found).num_warps == 8


def test_half_precision(timer):
    (case, *_) = cases_of([TOY], [1], [torch.float16])
    _, table = run(timer, [case])
    assert table["entries"][0]["shape"]["dtype"] == "fp16"


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
    monkeypatch.setattr(linear, "launch_config", lambda *shape: SLOW)
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
    switches = {"pdl": lambda device: (lambda i: 10.0, lambda i: on)}
    timer = Timer(stand_ins, times)
    report = tune([], GPU, CPU, timer, path, VERSIONS, switches=switches)
    assert report.measured == 1
    assert tuning.switch(GPU, "pdl") is faster
    report = tune([], GPU, CPU, timer, path, VERSIONS, switches=switches)
    assert (report.kept, report.measured) == (1, 0)


def test_the_switches_that_are_measured_can_be_measured():
    for name, programs in SWITCHES.items():
        assert callable(programs), name


def test_a_folder_that_cannot_be_written_to_is_found_out_before_anything_is_measured(timer, tmp_path):  # fmt: skip
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        tune(CASES, GPU, CPU, timer, tmp_path / "file/table.json", VERSIONS, switches={})
    assert timer.calls == []
