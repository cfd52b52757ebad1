"""Which launch config is fastest on this GPU, measured once and written where the kernels look it up.

For each distinct product and attention of the models asked for: every candidate of the kernel's own is first held
against the definition in float64, what is wrong or fails is reported and never written; the rest is timed in turn,
the best of them once more beside the rule's own choice, and a candidate is written only where it wins by more than
the spread of the measurement. The table is written after every operation, so that an end at any time loses nothing;
a later call goes on where it ended.
"""

import dataclasses
import datetime
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from vit_fast.cuda_timer import CudaTimer
from vit_fast.kernels import tables, trial, tuning
from vit_fast.kernels.tuning import Gpu
from vit_fast.ops import choose_ops
from vit_fast.tune_cases import Case, Inputs, set_up
from vit_fast.tune_switches import SWITCHES

SCREENING, CONFIRMING = 5, 21  # rounds
FINALISTS = 3


class Timer(Protocol):
    """cuda_timer.CudaTimer, or what stands in for it where there is no GPU."""

    def sets(self, nbytes: int) -> int: ...

    def __call__(
        self, programs: Sequence[Callable[[int], object]], sets: int, rounds: int
    ) -> list[list[float]]: ...


# name -> the two ways to run, without and with: (device, gpu) -> (off, on), programs as a Timer takes them
Switches = Mapping[str, Callable[[torch.device, Gpu], tuple[Callable[[int], object], ...]]]


def here() -> tuple[Gpu, torch.device, Timer]:
    """The GPU that is measured on: PyTorch's current one. ValueError says why there is none for it."""
    if not torch.cuda.is_available():
        raise ValueError(
            "it measures on a GPU, and PyTorch sees none here: `vit-fast doctor` says why"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    ops, why = choose_ops(device, torch.bfloat16)
    if not ops.name.startswith("triton"):
        raise ValueError(f"the kernels do not run on this GPU: {why}")
    return tuning.gpu_of(device), device, CudaTimer(device)


class Unusable(RuntimeError):
    """A candidate has left the GPU in a state in which nothing runs any more in this process."""


@dataclass
class Report:
    """What a call has done."""

    path: Path
    measured: int = 0
    better: int = 0  # of them: a candidate beats the rule
    kept: int = 0  # in the table before
    left: int = 0  # the time was up before
    notes: list[str] = field(default_factory=list)  # wrong and failing candidates, tables refused


def tune(
    cases: Sequence[Case],
    gpu: Gpu,
    device: torch.device,
    timer: Timer,
    path: Path,
    versions: Mapping[str, str],
    minutes: float = float("inf"),
    switches: Switches = SWITCHES,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Measures what the table at `path` lacks, in the order given, and stops after `minutes`, between two operations.

    OSError where the table cannot be written, Unusable where a candidate has broken the GPU's context.
    """
    report, end = Report(path), clock() + 60 * minutes
    table = _begin(path, gpu, versions, report.notes)
    jobs = [("switch", name) for name in switches if name not in table["switches"]]
    report.kept = len(switches) - len(jobs)
    for case in cases:
        entry = _find(table["entries"], case)
        if entry and entry.get("rule") == _plain(case.rule(gpu)):
            report.kept += 1
        else:
            jobs.append(("case", case))
    # written before anything is measured: a folder that cannot be written to is not found out after minutes
    tables.write(path, table)
    report.left = len(jobs)
    for kind, job in progress(jobs):
        if clock() >= end:
            break
        # launched as it will be: an earlier table, or none, may be in use until this one is done
        gpu = dataclasses.replace(gpu, pdl=table["switches"].get("pdl", {}).get("on", False))
        try:
            if kind == "switch":
                found = table["switches"]
                _measure_switch(job, switches[job], device, gpu, timer, found, report.notes)
                done = job in found
            else:
                entry = measure(job, gpu, device, timer, table["failed"], report.notes)
                done = entry is not None
        finally:
            tables.write(path, table)  # with what failed
        report.left -= 1
        if not done:
            continue
        if kind == "case":
            table["entries"] = [e for e in table["entries"] if not _is_of(e, job)] + [entry]
            report.better += entry["config"] is not None
        report.measured += 1
        table["date"] = datetime.date.today().isoformat()
        tables.write(path, table)
    tuning.forget()
    return report


def measure(
    case: Case,
    gpu: Gpu,
    device: torch.device,
    timer: Timer,
    failed: list[dict[str, Any]],
    notes: list[str],
) -> dict[str, Any] | None:
    """One operation -> its entry; None where nothing could be measured. What fails is added to `failed` and `notes`."""
    try:
        return _measure(case, gpu, device, timer, failed, notes)
    except torch.OutOfMemoryError:
        notes.append(f"{case.name}: not measured, it does not fit into the memory that is free")
        return None


def _measure(case: Case, gpu: Gpu, device, timer: Timer, failed, notes) -> dict[str, Any] | None:
    rule = case.rule(gpu)
    inputs = set_up(case, device, timer.sets(case.nbytes), gpu)
    known = [f["config"] for f in failed if _is_of(f, case)]
    right = []
    for config in dict.fromkeys((rule, *case.candidates(gpu))):
        if _plain(config) in known:
            continue
        why = _why_wrong(inputs, config, device, failed, notes)
        if not why:
            right.append(config)
    if not right:
        notes.append(f"{case.name}: no config of it works")
        return None

    def timed(configs: Sequence[Any], rounds: int) -> dict[Any, list[float]]:
        programs = [lambda i, c=config: inputs.launch(c, i) for config in configs]
        return dict(zip(configs, timer(programs, inputs.sets, rounds)))

    try:
        screened = timed(right, SCREENING)
        others = [c for c in right if c != rule]
        others.sort(key=lambda c: statistics.median(screened[c]))
        finalists = [rule] * (rule in right) + others[:FINALISTS]
        times = timed(finalists, CONFIRMING)
    except torch.OutOfMemoryError:
        raise
    except trial.FAULTS as error:
        notes.append(f"{case.name}: not measured, {_words(error)}")
        _check_gpu(device, f"{notes[-1]}. The GPU is left unusable: the same command goes on")
        return None
    best = min(finalists, key=lambda c: statistics.median(times[c]))
    wins = rule not in times or beats(times[best], times[rule])
    return {
        "op": case.op,
        "shape": dict(case.shape),
        "config": _plain(best) if wins else None,
        "rule": _plain(rule),
        "best_us": round(statistics.median(times[best]), 3),
        "rule_us": round(statistics.median(times[rule]), 3) if rule in times else None,
        "spread_us": round(max(map(spread, times.values())), 3),
        "tried": len(right),
    }


def spread(samples: Sequence[float]) -> float:
    """The middle half of the samples is this wide."""
    low, _, high = statistics.quantiles(samples, n=4)
    return high - low


def beats(these: Sequence[float], those: Sequence[float]) -> bool:
    """Faster by more than either of them spreads."""
    gain = statistics.median(those) - statistics.median(these)
    return gain > max(spread(these), spread(those))


def _why_wrong(
    inputs: Inputs,
    config: Any,
    device: torch.device,
    failed: list[dict[str, Any]],
    notes: list[str],
) -> str:
    """Why a config is not to be timed, noted; or ""."""
    case = inputs.case
    record = {"op": case.op, "shape": dict(case.shape), "config": _plain(config)}
    try:
        why = inputs.why_wrong(config)
    except torch.OutOfMemoryError:
        raise  # it may fit another time
    except trial.FAULTS as error:
        why = _words(error)
        broken = (
            f"{case.name}: {config} has left the GPU unusable ({why}). Nothing measured is lost: "
        )
        try:
            _check_gpu(device, broken + "the same command goes on without this config")
        except Unusable:
            failed.append({**record, "why": why})
            raise
    if why:
        failed.append({**record, "why": why})
        notes.append(f"{case.name}: {config} is left out, {why}")
    return why


def _measure_switch(
    name: str, programs: Callable, device: torch.device, gpu: Gpu, timer: Timer,
    found: dict[str, Any], notes: list[str],
) -> None:  # fmt: skip
    """Puts the switch into `found`, off where one of its ways cannot run; not where memory is lacking now."""
    try:
        off, on = timer(programs(device, gpu), 1, CONFIRMING)
    except torch.OutOfMemoryError:
        notes.append(f"{name}: not measured, it does not fit into the memory that is free")
    except trial.FAULTS as error:
        notes.append(f"{name}: stays off, {_words(error)}")
        found[name] = {"on": False, "why": _words(error)}
        _check_gpu(device, f"{notes[-1]}. The GPU is left unusable: the same command goes on")
    else:
        times = {"on_us": on, "off_us": off}
        medians = {key: round(statistics.median(us), 3) for key, us in times.items()}
        found[name] = {"on": beats(on, off), **medians}


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _check_gpu(device: torch.device, otherwise: str) -> None:
    """Unusable, saying `otherwise`, where an error has left it so."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            raise Unusable(otherwise) from error


def _begin(path: Path, gpu: Gpu, versions: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """The table to go on with; a new one where there is none of this GPU and these versions."""
    try:
        table = tables.read(path, tuning.hardware(gpu), versions["triton"])
    except ValueError as error:
        notes.append(f"{path} is written anew: {error}")
        table = None
    if table and table["versions"] != versions:
        notes.append(f"{path} is written anew: it was measured with {table['versions']}")
        table = None
    empty = {
        "schema": tables.SCHEMA,
        "date": datetime.date.today().isoformat(),
        "gpu": tuning.hardware(gpu),
        "versions": dict(versions),
        "switches": {},
        "failed": [],
        "entries": [],
    }
    return {**empty, **(table or {})}


def _plain(config: Any) -> dict[str, Any]:
    """A Config as it comes back out of JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _is_of(entry: Mapping[str, Any], case: Case) -> bool:
    return entry["op"] == case.op and entry["shape"] == case.shape


def _find(entries: Iterable[dict[str, Any]], case: Case) -> dict[str, Any] | None:
    return next((e for e in entries if _is_of(e, case)), None)
