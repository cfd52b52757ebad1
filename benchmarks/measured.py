"""A case measured: each program made ready (prepared.py), then timed in turn with the others. See results.py."""

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from .case import Case
from .host import Busy, clocks
from .measure import quantile
from .method import Method, Sampler, in_turn, rest, sampler, statistics
from .prepared import Prepared, against, empty_row, fail, in_words
from .results import Case as Found
from .results import timed
from .rivals.compiled import forget_compiled
from .task import Task, Unavailable, ordinary_tensors
from .tasks import TASKS, steps_of


def programs_of(case: Case, device: torch.device) -> tuple[str, ...]:
    if case.layer != "ablation":
        return case.programs
    return case.programs + tuple(name for name, _ in steps_of(case, device))


def measure(
    case: Case,
    device: torch.device,
    method: Method,
    peaks: dict[str, Any],
    say: Callable[[str], None] = lambda words: None,
) -> Found:
    """The case of a results file. What a task itself needs and is not there leaves every program skipped."""
    found = described(case, device)
    names = programs_of(case, device)
    with torch.inference_mode():
        try:
            with ordinary_tensors():
                task = TASKS[case.layer](case, device)
            prepared = prepared_programs(names, task, say)
        except (Unavailable, torch.OutOfMemoryError) as reason:
            # a program that finds no memory has failed: this is the task, or its reference
            why = str(reason) if isinstance(reason, Unavailable) else in_words(reason)
            found["rows"] = [empty_row(n) | {"status": "skipped", "why": why} for n in names]
            return found
        found["rows"] = [p.row for p in prepared]
        time_them(found, case, prepared, task, method)
    compare(found, peaks)
    del prepared, task
    # compiled programs hold their module in cycles
    forget_compiled()
    gc.collect()
    return found


def prepared_programs(
    names: tuple[str, ...], task: Task, say: Callable[[str], None]
) -> list[Prepared]:
    """The baseline first: without it nothing is judged."""
    say("float64")
    reference = task.reference()
    found: list[Prepared] = []
    for name in names:
        say(name)
        found.append(against(found[0] if found else None, name, task, reference))
    return found


def described(case: Case, device: torch.device) -> Found:
    """The fields that need no measuring."""
    return {
        "name": case.name,
        "layer": case.layer,
        "subject": case.subject,
        "title": case.of.title,
        "what": case.what,
        "dtype": case.dtype,
        "batch": case.batch,
        "scenario": case.scenario,
        "cache": case.cache,
        "flops": case.flops,
        "bytes": case.bytes,
        "count": case.count,
        "baseline": case.baseline,
        "rows": [],
        "drift": None,
        "disturbed": "",
        "clocks": {"before": clocks(device), "after": {}},
    }


def time_them(
    found: Found, case: Case, prepared: list[Prepared], task: Task, method: Method
) -> None:
    """Fills the timed fields of the rows; drift, disturbed and clocks of the case."""
    ready = {p.row["program"]: p for p in prepared if p.program is not None}

    def lost(name: str, error: Exception) -> None:
        fail(ready[name].row, error, task.device)

    samplers: dict[str, Sampler] = {}
    for name, p in ready.items():
        try:
            samplers[name] = sampler(p.program, task.inputs, task.device, case.layer, case.cache)
        except Exception as error:
            lost(name, error)
    before, begin = Busy.now(), time.perf_counter()
    times = in_turn(samplers, method, case.layer, lost)
    share = Busy.now().foreign(before, time.perf_counter() - begin) if before else 0.0
    for name, (samples, bursts) in times.items():
        ready[name].row.update(statistics(samples, bursts, case.batch))
    if case.baseline in times:
        again = []
        for _ in range(max(3, method.least_rounds // 2)):
            rest(method.pause_ms)
            again.append(samplers[case.baseline]()[0])
        found["drift"] = quantile(again, 0.5) / ready[case.baseline].row["p50_ms"] - 1
    found["clocks"]["after"] = clocks(task.device)
    found["disturbed"] = disturbed(found, share, method)


def disturbed(found: Found, share: float, method: Method) -> str:
    """Why these times are not to be trusted, or ""."""
    rows = list(timed(found))
    wide = [row for row in rows if row["spread"] > method.spread_bound]
    reasons = []
    if wide:
        widest = max(row["spread"] for row in wide)
        reasons.append(
            f"samples of {len(wide)} of {len(rows)} programs are spread over more than "
            f"{method.spread_bound:.0%}, up to {widest:.0%}"
        )
    if found["drift"] is not None and abs(found["drift"]) > method.drift_bound:
        reasons.append(f"the baseline's median moved by {found['drift']:+.0%}")
    if share > method.share_bound:
        reasons.append(f"others took {share:.0%} of the processors")
    return "; ".join(reasons)


def compare(found: Found, peaks: dict[str, Any]) -> None:
    """Fills what a row says of itself by other numbers: speed-up, rates, shares of the peaks."""
    rows = {row["program"]: row for row in timed(found)}
    baseline, peak = rows.get(found["baseline"]), peaks.get(found["dtype"], {})
    for row in rows.values():
        ms = row["p50_ms"]
        if baseline is not None:
            row["speed_up"] = baseline["p50_ms"] / ms
        if found["bytes"]:
            row["gbps"] = found["bytes"] / ms / 1e6
        if not found["flops"]:
            continue
        # of many calls in a row, where that is another time
        row["tflops"] = found["flops"] / found["batch"] * row["images_s"] / 1e12
        for name, share in (("measured_tflops", "mfu"), ("nominal_tflops", "mfu_nominal")):
            if peak.get(name):
                row[share] = row["tflops"] / peak[name]
