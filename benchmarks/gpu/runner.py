"""Runs cells in order of value, inside a deadline: untimed ones several at a time, timed ones alone on the GPU."""

import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import Cell
from benchmarks.gpu.results import Results
from benchmarks.gpu.worker import Worker

# a process that has not imported everything by then never will
START_LIMIT = 180.0


class NoWorker(RuntimeError):
    """No process for the cells starts, any more or at all."""


class Runner:
    """`setting.workers` processes at most; `say` is given one line a cell."""

    def __init__(
        self, setting: Any, log: Path, deadline: float, say: Callable[[str], None] = print
    ) -> None:
        self.setting, self.log, self.deadline, self.say = setting, log, deadline, say
        self.workers: list[Worker] = []
        self.done = self.total = 0

    def __enter__(self) -> "Runner":
        # they import while the caller does
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            worker.end()

    def ask(self, cell: Cell) -> dict[str, Any]:
        """The row of one cell that is not put into a results file. RuntimeError where it did not come out right."""
        rows: list[dict[str, Any]] = []
        self._run([cell], lambda cell, row, seconds: rows.append(row), lambda keys: ())
        if not rows or rows[0]["status"] != "ok":
            why = rows[0].get("why", rows[0]["status"]) if rows else "no time was left for it"
            raise RuntimeError(f"{cell.key}: {why}; {self._last_words()}")
        return rows[0]

    def run(self, cells: list[Cell], results: Results) -> None:
        """Each cell that has no row yet, saved as it comes; what does not fit is listed under "skipped".

        NoWorker where nothing more can be run.
        """
        cells = [c for c in cells if c.key not in results.cells]
        self.total = len(cells)

        def keep(cell: Cell, row: dict[str, Any], seconds: float) -> None:
            results.add(cell, row, seconds)
            self.done += 1
            words = row.get("why") or row.get("wrong") or row.get("says", "")
            line = f"[{self.done}/{self.total}] {cell.key}: {row['status']} in {seconds:.1f} s"
            self.say(f"{line}  {words}".rstrip()[:200])

        def passed(keys: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(k for k in keys if results.cells.get(k, {}).get("status") == "ok")

        try:
            self._run(cells, keep, passed)
        finally:
            results.data["skipped"] = [c.key for c in cells if c.key not in results.cells]
            results.save()

    def _run(
        self,
        cells: list[Cell],
        keep: Callable[[Cell, dict[str, Any], float], None],
        passed: Callable[[tuple[str, ...]], tuple[str, ...]],
    ) -> list[Cell]:
        queue, skipped = list(cells), []
        while queue or self._busy():
            while queue and self._may_begin(queue[0]):
                cell = queue.pop(0)
                if time.monotonic() + cell.seconds > self.deadline:
                    skipped.append(cell)
                elif worker := self._idle():
                    more = {"passed": passed(cell.needs)} if cell.needs else {}
                    worker.begin(cell, **more)
                else:
                    queue.insert(0, cell)
                    break
            self._listen(keep)
        return skipped

    def _busy(self) -> list[Worker]:
        return [w for w in self.workers if w.cell is not None]

    def _may_begin(self, cell: Cell) -> bool:
        busy = self._busy()
        if cell.alone:
            # one that still starts would disturb it
            return not busy and all(w.ready for w in self.workers)
        return len(busy) < self.setting.workers and not any(w.cell.alone for w in busy)

    def _idle(self) -> Worker | None:
        """A worker that waits for a cell, the same one as long as it lives: it may have kept models.

        None where all that may be there are busy or still starting.
        """
        for worker in self.workers:
            if worker.ready and worker.cell is None:
                return worker
        if all(w.ready for w in self.workers):
            self._start()
        return None

    def _start(self) -> None:
        for _ in range(self.setting.workers - len(self.workers)):
            self.workers.append(Worker(self.setting, self.log))

    def _listen(self, keep: Callable[[Cell, dict[str, Any], float], None]) -> None:
        """Waits for the next answer, or for the next limit to pass."""
        now = time.monotonic()
        active = [w for w in self.workers if w.cell is not None or not w.ready]
        if not active:
            return
        ends = {id(w): self._end_of(w) for w in active}
        heard = wait([w.connection for w in active], max(0.0, min(ends.values()) - now))
        for worker in active:
            if worker.connection in heard:
                self._hear(worker, keep)
            elif time.monotonic() >= ends[id(worker)]:
                at_deadline = time.monotonic() >= self.deadline
                why = "the program's minutes were over" if at_deadline else "its limit passed"
                self._lose(worker, keep, "cut" if at_deadline else "timed out", why)

    def _end_of(self, worker: Worker) -> float:
        limit = worker.begun + (worker.cell.limit if worker.cell else START_LIMIT)
        return min(limit, self.deadline)

    def _hear(self, worker: Worker, keep: Callable[[Cell, dict[str, Any], float], None]) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._lose(worker, keep, "crashed", "")
            return
        if message == "ready":
            worker.ready = True
            return
        (row, usable), cell = message, worker.cell
        worker.cell = None
        keep(cell, row, time.monotonic() - worker.begun)
        if not usable:
            self.workers.remove(worker)
            worker.end()

    def _lose(self, worker: Worker, keep: Callable, status: str, why: str) -> None:
        cell, seconds = worker.cell, time.monotonic() - worker.begun
        self.workers.remove(worker)
        code = worker.end(patience=0.0 if why else 5.0)
        why = why or f"its process ended with exit code {code}"
        if cell is not None:
            keep(cell, {"status": status, "why": why}, seconds)
        elif status != "cut" and not any(w.ready for w in self.workers):
            raise NoWorker(f"a worker process did not start: {why}; {self._last_words()}")

    def _last_words(self) -> str:
        """The end of the log: on a machine that is gone with its files it is all that is left."""
        lines = self.log.read_text(errors="replace").splitlines()[-8:] if self.log.exists() else []
        return "\n  ".join([f"see {self.log}", *lines])
