"""The cases of cold start, measured: see cold_start.py for what a process does."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

from . import cold_start, subjects
from .case import Case
from .host import Busy, clocks
from .measured import compare, described, disturbed
from .method import Method, statistics
from .prepared import empty_row, in_words
from .results import Case as Found
from .results import Row
from .task import DTYPES

ROUNDS = 3


@contextmanager
def checkpoint(case: Case, device: torch.device) -> Iterator[dict[str, str | int]]:
    """What cold_start.once is told of a case, with its checkpoint in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        subjects.make(case.subject, "tokens").save_pretrained(folder)
        yield dict(
            folder=folder,
            cls=case.of.classes["tokens"],
            dtype=str(DTYPES[case.dtype]).removeprefix("torch."),
            device=device.type,
            batch=case.batch,
            side=case.of.model.image,
        )


def fill(row: Row, ms: Sequence[float], parts: Sequence[dict[str, float]], batch: int) -> None:
    """The timed fields of a row, of whole processes and of their parts."""
    row.update(statistics(ms, ms, batch))
    row["parts"] = {part: round(median(p[part] for p in parts), 3) for part in parts[0]}
    row["first_s"] = row["p50_ms"] / 1e3


def measure(
    case: Case,
    device: torch.device,
    method: Method,
    peaks: dict[str, Any],
    say: Callable[[str], None] = lambda words: None,
) -> Found:
    """In turn, ROUNDS times, behind a round that is not timed: files and kernels lie where a second start has them."""
    found = described(case, device)
    rows = {name: empty_row(name) for name in case.programs}
    found["rows"] = list(rows.values())
    times: dict[str, list[tuple[float, dict[str, float]]]] = {name: [] for name in rows}
    before, begin = Busy.now(), time.perf_counter()
    with checkpoint(case, device) as of:
        for turn in range(1 + ROUNDS):
            for name, row in rows.items():
                if row["status"] != "ok":
                    continue
                say(name)
                try:
                    one = cold_start.once(name, **of)
                except (RuntimeError, OSError) as error:
                    row.update(status="failed", why=in_words(error))
                    continue
                if turn:
                    times[name].append(one)
    for name, row in rows.items():
        if row["status"] != "ok":
            continue
        fill(row, [t for t, _ in times[name]], [p for _, p in times[name]], case.batch)
    found["clocks"]["after"] = clocks(device)
    # a process that has ended counts as this one's
    share = Busy.now().foreign(before, time.perf_counter() - begin) if before else 0.0
    found["disturbed"] = disturbed(found, share, method)
    compare(found, peaks)
    return found
