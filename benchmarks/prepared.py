"""A program of a case made ready: built, called, held against float64, and what it takes counted. See results.py."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .host import MIB, PeakMemory, held
from .results import NUMBERS, Row
from .rivals import rival_of
from .task import Program, Task, Unavailable, judge, ordinary_tensors

WARM_UP = 1  # calls behind the first, before the one that is judged


@dataclass
class Prepared:
    """program: None where the row says why it is not timed. result: of the baseline, which others are held against."""

    row: Row
    program: Program | None = None
    result: Tensor | None = None


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
        with quiet(), ordinary_tensors():
            program = rival.build(task)
        row["build_s"] = round(time.perf_counter() - begin, 3)
        with program.held():
            begin = time.perf_counter()
            with quiet():
                program.call(*task.inputs)
                wait(task.device)
            row["first_s"] = round(time.perf_counter() - begin, 3)
            for _ in range(WARM_UP):
                program.call(*task.inputs)
            if before is not None:
                row["held_mib"] = round((held(task.device) - before) / MIB, 1)
            # it may lie in memory that the next call writes to
            result = program.call(*task.inputs).clone()
            with negated(task.inputs) as others:
                with PeakMemory(task.device) as peak:
                    other = program.call(*task.inputs)
                    wait(task.device)
                if others and torch.equal(other, result):
                    raise RuntimeError("it gives the same answer for other inputs")
            del other
            row["peak_mib"] = peak.mib
            row["launches"] = launches(program, task) if rival.operators else None
        accuracy, wrong = judge(result, reference, result if baseline is None else baseline)
    except Unavailable as reason:
        row.update(status="skipped", why=str(reason))
        return found
    except Exception as error:
        fail(row, error, task.device)
        return found
    row["accuracy"] = accuracy
    if wrong:
        row.update(status="wrong" if rival.ours else "inaccurate", why=wrong)
    if baseline is None:
        found.result = result
    # numbers that are no numbers are not worth a time
    found.program = program if accuracy is not None and row["status"] != "wrong" else None
    if accuracy is None and not rival.ours:
        row["status"] = "failed"
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


def fail(row: Row, error: Exception, device: torch.device) -> None:
    """A rival's own failure is a result; one of ours is a failure of the run.

    RuntimeError where the device is in no state to go on: then it repeats its error at each call.
    """
    row.update(status="failed", why=in_words(error))
    try:
        wait(device)
    except RuntimeError:
        words = f"{row['program']}: {row['why']}: the device does not answer any more"
        raise RuntimeError(words) from error


def in_words(error: Exception) -> str:
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"[:300]


@contextlib.contextmanager
def negated(inputs: tuple[Any, ...]) -> Iterator[bool]:
    """Tensors of floats among the inputs, where they lie, by which a kept answer shows. Whether there are any."""
    floats = [x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
    try:
        for x in floats:
            x.neg_()
        yield bool(floats)
    finally:
        for x in floats:
            x.neg_()


def launches(program: Program, task: Task) -> int | None:
    """Kernels on a GPU, copies left out; on a CPU the operators of PyTorch that call no other. None: it sees none."""
    on_gpu = task.device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with quiet(), profile(activities=activities) as profiler:
        program.call(*task.inputs)
        wait(task.device)
    if on_gpu:
        events = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        # torch.compile puts its own marks among them
        kernels = [e for e in events if not e.is_user_annotation]
        return sum(not e.name.startswith(("Memcpy", "Memset")) for e in kernels) or None
    return sum(not e.cpu_children for e in profiler.events()) or None


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
