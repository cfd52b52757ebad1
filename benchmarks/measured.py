"""A case measured: each program made, held against float64, timed in turn with the others. See results.py."""

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .host import MIB, Busy, PeakMemory, clocks, held
from .measure import quantile
from .method import Method, in_turn, sampler, statistics
from .registry import Case
from .results import NUMBERS, Row, timed
from .results import Case as Found
from .rivals import rival_of
from .task import Program, Task, Unavailable, judge
from .tasks import TASKS, steps_of

WARM_UP = 1  # calls behind the first, before the one that is judged


@dataclass
class Prepared:
    """program: None where the row says why it is not timed."""

    row: Row
    program: Program | None = None
    result: Tensor | None = None


def programs_of(case: Case, device: torch.device) -> tuple[str, ...]:
    if case.layer != "ablation":
        return case.programs
    return case.programs + tuple(name for name, _ in steps_of(case, device))


def empty_row(program: str) -> Row:
    return {
        "program": program,
        "ours": rival_of(program).ours,
        "status": "ok",
        "why": "",
        "accuracy": None,
        "samples_ms": [],
        "parts": None,
        **dict.fromkeys(NUMBERS),
    }


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def prepare(name: str, task: Task, reference: Tensor, baseline: Tensor | None) -> Prepared:
    """Makes a program, calls it, judges what it gives and counts what it takes. baseline None: it is this one."""
    row, rival = empty_row(name), rival_of(name)
    found = Prepared(row)
    before = held(task.device)
    try:
        begin = time.perf_counter()
        with quiet():
            program = rival.build(task)
        row["build_s"] = round(time.perf_counter() - begin, 3)
        with program.held():
            begin = time.perf_counter()
            program.call(*task.inputs)
            wait(task.device)
            row["first_s"] = round(time.perf_counter() - begin, 3)
            for _ in range(WARM_UP):
                program.call(*task.inputs)
            wait(task.device)
            with PeakMemory(task.device) as peak:
                result = program.call(*task.inputs)
                wait(task.device)
            # it may lie in memory that the next call writes to
            result = result.clone()
            row["peak_mib"] = peak.mib
            if before is not None:
                row["held_mib"] = round((held(task.device) - before) / MIB, 1)
            row["launches"] = launches(program, task) if rival.operators else None
    except Unavailable as reason:
        row.update(status="skipped", why=str(reason))
        return found
    except torch.AcceleratorError:
        raise  # the device is in no state to go on
    except Exception as error:
        # a rival's own failure is a result; one of ours is a failure of the run
        row.update(status="failed", why=in_words(error))
        return found
    accuracy, wrong = judge(result, reference, result if baseline is None else baseline)
    row["accuracy"] = accuracy
    if wrong:
        row.update(status="wrong" if rival.ours else "inaccurate", why=wrong)
    found.result = result
    # numbers that are no numbers are not worth a time
    found.program = program if accuracy is not None and row["status"] != "wrong" else None
    if accuracy is None and not rival.ours:
        row["status"] = "failed"
    return found


def in_words(error: Exception) -> str:
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"[:300]


def launches(program: Program, task: Task) -> int:
    """Kernels on a GPU; on a CPU the operators of PyTorch that call no other."""
    on_gpu = task.device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with quiet(), profile(activities=activities) as profiler:
        program.call(*task.inputs)
        wait(task.device)
    if on_gpu:
        events = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return sum(not e.name.startswith(("Memcpy", "Memset")) for e in events)
    return sum(not e.cpu_children for e in profiler.events())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Standard error of libraries goes nowhere: autotuning prints tables, the profiler when it starts and stops."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


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
            task = TASKS[case.layer](case, device)
        except Unavailable as reason:
            found["rows"] = [empty_row(n) | {"status": "skipped", "why": str(reason)} for n in names]  # fmt: skip
            return found
        prepared = prepared_programs(names, task, say)
        found["rows"] = [p.row for p in prepared]
        time_them(found, case, prepared, task, method)
    compare(found, peaks)
    del prepared, task
    # compiled programs hold their module in cycles
    torch.compiler.reset()
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


def against(baseline: Prepared | None, name: str, task: Task, reference: Tensor) -> Prepared:
    """A program beside the baseline; None: it is the baseline."""
    if baseline is None:
        return prepare(name, task, reference, None)
    if baseline.result is None:
        row = baseline.row
        why = f"the baseline, {row['program']}, gave nothing to hold this against: {row['why']}"
        return Prepared(empty_row(name) | {"status": "skipped", "why": why})
    return prepare(name, task, reference, baseline.result)


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
    samplers = {
        name: sampler(p.program, task.inputs, task.device, case.layer, case.cache)
        for name, p in ready.items()
    }
    before, begin = Busy.now(), time.perf_counter()
    times = in_turn(samplers, method, case.layer)
    share = Busy.now().foreign(before, time.perf_counter() - begin) if before else 0.0
    for name, (samples, bursts) in times.items():
        ready[name].row.update(statistics(samples, bursts, case.batch))
    if case.baseline in samplers:
        again = [samplers[case.baseline]()[0] for _ in range(max(3, method.least_rounds // 2))]
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
