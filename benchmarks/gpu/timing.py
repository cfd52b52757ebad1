"""Timing in turn: each program is a graph of many launches, and the programs' graphs are replayed round by round.

In a graph the gaps between launches are those of a real model's graph, and the host is out of the numbers. What is
timed is the second of two replays in a row, so that the host's own launch of it hides behind the first.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch

from benchmarks.gpu.setting import Setting
from vit_fast.cuda_timer import capture, elapsed_us

Call = Callable[[], object]


class CudaTimer:
    def graph(self, calls: Sequence[Call]) -> Call:
        """One CUDA graph of the calls in a row. Each was called before, so that nothing is compiled in a capture."""
        for call in calls:
            call()
        # results live until the capture ends: each gets memory of its own, as in a model
        return capture(lambda: [call() for call in calls])

    def elapsed_us(self, call: Call, ahead: Call | None = None) -> float:
        """Device time of a call, microseconds; `ahead` is what keeps the device busy while the host gets to it."""
        return elapsed_us(call, ahead)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def reset_peak(self) -> int:
        """Bytes in use now; peak() counts from here."""
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()


class HostTimer:
    """The same on a CPU, for a dry run."""

    def graph(self, calls: Sequence[Call]) -> Call:
        def replay() -> None:
            for call in calls:
                call()

        return replay

    def elapsed_us(self, call: Call, ahead: Call | None = None) -> float:
        begin = time.perf_counter()
        call()
        return (time.perf_counter() - begin) * 1e6

    def synchronize(self) -> None:
        pass

    def reset_peak(self) -> int:
        return 0

    def peak(self) -> int:
        return 0


def timer_of(setting: Setting) -> CudaTimer | HostTimer:
    return HostTimer() if setting.dry else CudaTimer()


def sets(setting: Setting, nbytes: float) -> int:
    """How many sets of inputs of `nbytes` the launches are rotated through, so that none is found in the L2 cache."""
    return max(1, min(256, math.ceil(setting.rotate / nbytes)))


def in_turn_us(
    setting: Setting, programs: Mapping[str, Sequence[Call]], estimate_us: float
) -> dict[str, float]:
    """Median microseconds of one launch; a program is one call for each set of inputs.

    The first program is timed twice, as two graphs; the second is "again": what two versions differ by is noise
    where it is less.
    """
    timer = timer_of(setting)
    first = next(iter(programs))
    programs = {**programs, "again": programs[first]}
    graphs = {}
    for name, calls in programs.items():
        times = max(1, round(setting.replay_us / (estimate_us * len(calls))))
        graphs[name] = timer.graph(list(calls) * times), len(calls) * times
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(setting.rounds + 1):
        for name, (replay, launches) in graphs.items():
            found[name].append(timer.elapsed_us(replay, ahead=replay) / launches)
    return {name: round(median(us[1:]), 4) for name, us in found.items()}


def digits(rate: float) -> float:
    """Four significant digits: a toy's rate, too, is more than 0.0, and other numbers are divided by it."""
    return float(f"{rate:.4g}")


def spread(us: Mapping[str, float]) -> float:
    """The share by which one program differed from itself."""
    first = next(iter(us.values()))
    return round(abs(us["again"] / first - 1), 4)
