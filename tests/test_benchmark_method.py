"""How programs are timed: fairness, statistics, and what is called disturbed."""

import contextlib
import os
import time

import pytest
import torch

from benchmarks import host, method
from benchmarks.measured import compare, disturbed
from benchmarks.method import Method, in_turn, sampler, statistics
from benchmarks.task import Program

CPU = torch.device("cpu")
FEW = Method(seconds=0.0, least_rounds=6, pause_ms=0.0)


def test_programs_are_timed_in_turn_and_each_is_first_as_often():
    order = []

    def of(name: str):
        return lambda: (order.append(name), (1.0, 2.0))[1]

    found = in_turn({name: of(name) for name in "abc"}, FEW)
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    # the first one does not count
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds) and len(rounds) == 1 + 6
    assert [r[0] for r in rounds] == [*"abcabca"]
    assert found["b"] == ([1.0] * 6, [2.0] * 6)


def test_timing_lasts_as_long_as_is_asked_for():
    begin = time.perf_counter()
    found = in_turn({"a": lambda: (time.sleep(0.01), (1.0, 1.0))[1]}, Method(0.2, 1, 0.0))
    assert 0.2 <= time.perf_counter() - begin < 2.0
    assert len(found["a"][0]) > 1


def test_nothing_to_time_ends_at_once():
    assert in_turn({}, Method(seconds=60.0)) == {}


def test_the_programs_pause(monkeypatch):
    pauses = []
    monkeypatch.setattr(method.time, "sleep", pauses.append)
    in_turn({"a": lambda: (1.0, 1.0), "b": lambda: (1.0, 1.0)}, Method(0.0, 2, 20.0))
    assert pauses == [0.02] * 6


def test_the_first_round_does_not_count():
    times = iter([9.0, 1.0, 2.0])
    assert in_turn({"a": lambda: (next(times),) * 2}, Method(0.0, 2, 0.0))["a"][0] == [1.0, 2.0]


@pytest.mark.parametrize("busy, slept", [(0.0, 0.02), (0.03, 0.06), (60.0, 0.2)])
def test_a_pause_lasts_until_the_threads_of_a_program_sleep(monkeypatch, busy, slept):
    """ONNX Runtime's spin for 30 ms behind a call: they would take a processor from the program that comes next."""
    now, used = [0.0], [0.0]

    def sleep(seconds: float) -> None:
        used[0] += min(seconds, max(0.0, busy - now[0]))
        now[0] += seconds

    monkeypatch.setattr(method.time, "sleep", sleep)
    monkeypatch.setattr(method.time, "process_time", lambda: used[0])
    method.rest(20.0)
    assert now[0] == pytest.approx(slept)


def test_a_program_that_fails_meanwhile_is_left_out():
    calls, lost = [], []

    def failing():
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory")
        return 1.0, 1.0

    samplers = {"a": lambda: (1.0, 1.0), "b": failing, "c": lambda: (2.0, 2.0)}
    found = in_turn(samplers, FEW, lost=lambda name, error: lost.append((name, str(error))))
    assert lost == [("b", "no memory")] and len(calls) == 3
    assert set(found) == {"a", "c"} and len(found["a"][0]) == len(found["c"][0]) == 6
    calls.clear()
    with pytest.raises(torch.OutOfMemoryError):
        in_turn(samplers, FEW)


@pytest.mark.parametrize("cache, calls", [("cold", 0), ("warm", 2)])
def test_work_ahead_of_an_operation_hides_its_launch_on_a_gpu(monkeypatch, cache, calls):
    """20 flushes of 50 us are the millisecond that is wanted; then what leaves the cache warm, then what is timed."""
    at = []

    def elapsed_us(call, ahead) -> float:
        at.clear()
        ahead()
        at.append("timed")
        call()
        return 50.0

    monkeypatch.setattr(method, "elapsed_us", elapsed_us)
    monkeypatch.setattr(method, "flusher", lambda device: lambda: at.append("flush"))
    program = Program(lambda: at.append("call"))
    sample = sampler(program, (), torch.device("cuda"), "operation", cache)
    assert sample() == (0.05, 0.05)
    assert at == ["flush"] * 20 + ["call"] * calls + ["timed", "call"]


def test_statistics_are_those_of_the_samples():
    samples = [float(i) for i in range(101)][::-1]
    found = statistics(samples, [2.0, 4.0, 6.0], batch=8)
    assert (found["p50_ms"], found["p90_ms"], found["p99_ms"], found["least_ms"]) == (50, 90, 99, 0)
    assert found["spread"] == pytest.approx((75 - 25) / 50)
    assert found["images_s"] == pytest.approx(8 / 4e-3)
    assert found["samples_ms"] == samples  # in the order in which they came


@pytest.fixture
def clock(monkeypatch):
    """A clock that calls move on: clock.tick(ms)."""

    class Clock:
        now = 0.0

        def tick(self, ms: float) -> None:
            self.now += ms / 1e3

    made = Clock()
    monkeypatch.setattr(method.time, "perf_counter", lambda: made.now)
    return made


@pytest.mark.parametrize("ms, calls", [(1.0, 2 + 4), (2.5, 1 + 2), (60.0, 1 + 1), (250.0, 1)])
def test_a_short_call_is_timed_several_times_over(clock, ms, calls):
    made = []

    def call() -> None:
        made.append(clock.tick(ms))

    sample = sampler(Program(call), (), CPU, "model", "warm")
    made.clear()
    assert sample() == pytest.approx((ms, ms))
    # where processors may have gone to sleep, the first calls are not timed
    assert len(made) == calls


def test_what_holds_a_program_is_entered_around_the_time(clock):
    at = []

    @contextlib.contextmanager
    def held():
        at.append("in")
        clock.tick(50)
        yield
        at.append("out")

    def call() -> None:
        at.append("call")
        clock.tick(5)

    sample = sampler(Program(call, held), (), CPU, "model", "warm")
    at.clear()
    assert sample()[0] == pytest.approx(5)
    assert at[0] == "in" and at[-1] == "out" and set(at[1:-1]) == {"call"}


def test_a_cold_cache_is_flushed_before_each_call(monkeypatch):
    at = []
    monkeypatch.setattr(method, "flusher", lambda device: lambda: at.append("flush"))
    sample = sampler(Program(lambda: at.append("call")), (), CPU, "operation", "cold")
    at.clear()
    sample(), sample()
    assert at == ["flush", "call"] * 2


def case(spreads: dict[str, float], drift: float | None = 0.0) -> dict:
    rows = [{"program": p, "status": "ok", "spread": s} for p, s in spreads.items()]
    return {"rows": rows, "drift": drift}


@pytest.mark.parametrize(
    "found, share, words",
    [
        (case({"a": 0.09, "b": 0.01}, 0.04), 0.04, ""),
        (case({"a": 0.12, "b": 0.3}), 0.0, "samples of 2 of 2 programs are spread over more than 10%, up to 30%"),
        (case({"a": 0.0}, -0.06), 0.0, "the baseline's median moved by -6%"),
        (case({"a": 0.0}, None), 0.2, "others took 20% of the processors"),
    ],
)  # fmt: skip
def test_a_disturbed_case_says_why(found, share, words):
    assert disturbed(found, share, Method()) == words


def test_rates_and_shares():
    def row(program: str, ms: float) -> dict:
        return {"program": program, "status": "ok", "p50_ms": ms, "images_s": 4 / ms * 1e3}

    found = {
        "baseline": "slow", "dtype": "fp32", "batch": 4, "flops": 2e9, "bytes": 1e6,
        "rows": [row("slow", 10.0), row("fast", 4.0)],
    }  # fmt: skip
    compare(found, {"fp32": {"measured_tflops": 1.0, "nominal_tflops": None}, "copy_gbps": 10.0})
    fast = found["rows"][1]
    assert fast["speed_up"] == 2.5
    assert fast["tflops"] == pytest.approx(0.5) and fast["mfu"] == pytest.approx(0.5)
    assert fast["gbps"] == pytest.approx(0.25)
    assert "mfu_nominal" not in fast


def test_the_share_of_others_leaves_out_our_own():
    cores = os.cpu_count()
    before, now = host.Busy(100.0, 1.0, 50.0), host.Busy(104.0, 1.5, 53.0)
    assert now.foreign(before, 2.0) == pytest.approx((4 - 3 + 0.5) / (2.0 * cores))
    assert host.Busy(101.0, 1.0, 53.0).foreign(before, 2.0) == 0.0
    # a tick of somebody else in a moment is not a crowd
    assert host.Busy(100.01, 1.0, 50.0).foreign(before, 1e-4) == 0.0
    assert host.Busy(104.0, 1.0, 50.0).foreign(before, host.LEAST_S) > 0.0


def test_this_process_is_seen_to_be_busy():
    before, begin = host.Busy.now(), time.process_time()
    if before is None:
        pytest.skip("no /proc/stat")
    while time.process_time() - begin < 0.3:
        pass
    assert host.Busy.now().own - before.own > 0.1


def test_the_peak_of_memory_counts_what_a_call_takes_and_gives_back():
    with host.PeakMemory(CPU) as peak:
        torch.zeros(64 << 20, dtype=torch.uint8).add_(1)
    if peak.mib is None:
        pytest.skip("this system does not tell the peak")
    assert 60 <= peak.mib < 80
    with host.PeakMemory(CPU) as nothing:
        pass
    assert nothing.mib < 8


def test_what_is_held_grows_with_what_is_kept():
    before = host.held(CPU)
    if before is None:
        pytest.skip("this system does not tell")
    kept = torch.zeros(64 << 20, dtype=torch.uint8).add_(1)
    assert 60 << 20 <= host.held(CPU) - before < 80 << 20
    del kept
    assert host.held(CPU) - before < 16 << 20
