"""A suite measured one program after another, as a test runner asks for them: same tasks, same judge, same file.

Only the task of the last case is kept, for the memory it takes.
"""

import gc
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch

from . import cold, cold_start
from .case import Case
from .host import Busy, clocks
from .measure import quantile
from .measured import compare, described, disturbed, programs_of
from .method import MOST_ROUNDS, SAMPLE_MS, SHARE, Method, flusher, statistics
from .prepared import Prepared, against, empty_row, in_words, wait
from .results import TIMED, Results, Row, timed, write
from .run import begun
from .task import Task, Unavailable, ordinary_tensors
from .tasks import TASKS


class Clock(Protocol):
    """What is used of pytest-benchmark's fixture. stats: of seconds a call; None if it did not time."""

    stats: Any

    def pedantic(self, target: Callable[[], object], **options: Any) -> object: ...


class Opened:
    """A case that is being measured: its task, the float64 reference and the baseline, made once."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.found = described(case, device)
        self.share = 0.0  # of the processors that others took, at worst
        self.task: Task | None = None
        self.missing = ""
        try:
            with ordinary_tensors():
                self.task = TASKS[case.layer](case, device)
        except Unavailable as reason:
            self.missing = str(reason)
            return
        self.reference = self.task.reference()
        self.baseline = against(None, case.baseline, self.task, self.reference)

    def measure(self, program: str, clock: Clock, method: Method) -> Row:
        """A row, timed if the clock does; else without its times."""
        if self.missing:
            return empty_row(program) | {"status": "skipped", "why": self.missing}
        prepared = self.baseline
        if program != self.case.baseline:
            prepared = against(self.baseline, program, self.task, self.reference)
        if prepared.program is None:
            return prepared.row
        call, before = self.until_there(prepared), Busy.now()
        with prepared.program.held():
            options = self.options(call, method)
            begin = time.perf_counter()
            clock.pedantic(call, **options)
            took = time.perf_counter() - begin
        if clock.stats is not None:
            ms = [s * 1e3 for s in clock.stats.stats.data]
            prepared.row.update(statistics(ms, ms, self.case.batch))
            if before is not None:
                self.share = max(self.share, Busy.now().foreign(before, took))
        return prepared.row

    def until_there(self, prepared: Prepared) -> Callable[[], None]:
        call, inputs, device = prepared.program.call, self.task.inputs, self.device

        def until_there() -> None:
            call(*inputs)
            wait(device)

        return until_there

    def flushed(self, flush: Callable[[], object]) -> Callable[[], None]:
        """pedantic takes what its setup returns as arguments: nothing. A GPU has done it when the time begins."""

        def setup() -> None:
            flush()
            wait(self.device)

        return setup

    def options(self, call: Callable[[], None], method: Method) -> dict[str, Any]:
        """What pedantic is told: as many rounds as fit into this program's share of the seconds."""
        call()
        ms = milliseconds(call)
        if self.case.cache == "cold":
            iterations, more = 1, {"setup": self.flushed(flusher(self.device))}
        else:
            iterations, more = max(1, math.ceil(SAMPLE_MS / ms)), {}
        seconds = method.seconds * SHARE.get(self.case.layer, 1.0)
        share_ms = seconds * 1e3 / len(programs_of(self.case, self.device))
        rounds = max(method.least_rounds, min(MOST_ROUNDS, int(share_ms / (ms * iterations))))
        return {"rounds": rounds, "iterations": iterations, "warmup_rounds": 1, **more}

    def close(self, method: Method) -> None:
        """The baseline once more, if it was timed."""
        rows = {row["program"]: row for row in timed(self.found)}
        if self.case.baseline in rows:
            with self.baseline.program.held():
                call = self.until_there(self.baseline)
                call()
                again = [milliseconds(call) for _ in range(max(3, method.least_rounds // 2))]
            median = rows[self.case.baseline]["p50_ms"]
            self.found["drift"] = quantile(again, 0.5) / median - 1


class OpenedCold:
    """A case of cold start: the checkpoint lies in a folder until it is closed."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.share = case, 0.0
        self.found = described(case, device)
        self.kept = ExitStack()
        self.of = self.kept.enter_context(cold.checkpoint(case, device))

    def measure(self, program: str, clock: Clock, method: Method) -> Row:
        row = empty_row(program)
        parts: list[dict[str, float]] = []
        try:
            clock.pedantic(
                lambda: parts.append(cold_start.once(program, **self.of)[1]),
                rounds=cold.ROUNDS,
                warmup_rounds=1,
            )
        except (RuntimeError, OSError) as error:
            return row | {"status": "failed", "why": in_words(error)}
        if clock.stats is not None:
            ms = [s * 1e3 for s in clock.stats.stats.data]
            cold.fill(row, ms, parts[-len(ms) :], self.case.batch)
        return row

    def close(self, method: Method) -> None:
        self.kept.close()


def milliseconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


class Suite:
    """A results file whose cases come one after the other; it is written behind each of them, if anything is timed."""

    def __init__(
        self, name: str, arguments: str, device: torch.device, method: Method, path: Path
    ) -> None:
        self.name, self.arguments, self.path = name, arguments, path
        self.device, self.method = device, method
        self.opened: Opened | OpenedCold | None = None
        self.results: Results | None = None
        self.begin = time.perf_counter()

    def begin_results(self, dtypes: Sequence[str]) -> None:
        """Measures the device's peaks, too."""
        self.results = begun(self.name, self.arguments, self.device.type, self.method, set(dtypes))

    def measure(self, case: Case, program: str, clock: Clock) -> Row:
        if self.opened is None or self.opened.case != case:
            self.close()
            kind = OpenedCold if case.layer == "cold start" else Opened
            self.opened = kind(case, self.device)
        row = self.opened.measure(program, clock, self.method)
        if row["p50_ms"] is not None or row["status"] not in TIMED:
            self.opened.found["rows"].append(row)
        return row

    def close(self) -> None:
        """Ends the case that is open."""
        if self.opened is None:
            return
        opened, self.opened = self.opened, None
        found = opened.found
        with torch.inference_mode():
            opened.close(self.method)
        found["clocks"]["after"] = clocks(self.device)
        if self.results is not None and found["rows"]:
            found["disturbed"] = disturbed(found, opened.share, self.method)
            compare(found, self.results["peaks"])
            self.results["cases"].append(found)
            self.results["run"]["seconds"] = round(time.perf_counter() - self.begin, 1)
            write(self.path, self.results)
        del opened
        # compiled programs hold their module in cycles
        torch.compiler.reset()
        gc.collect()
