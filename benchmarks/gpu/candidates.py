"""Which launch config, or which other kernel, wins at the shapes that count: checked first, then timed in turn.

Beside the configs of the kernel files these are the kernels of benchmarks/candidates, which may hang: each is
checked in a cell of its own with a short limit, and only what came out right is timed.
"""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.candidates import CANDIDATES, REASON
from benchmarks.gpu import configs
from benchmarks.gpu.ceilings import by_name, guess_us, rates, rotated, shapes
from benchmarks.gpu.cells import Cell
from benchmarks.gpu.programs import KERNELS, Result, check, inputs
from benchmarks.gpu.repeated import repeated
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timing import in_turn_us
from vit_fast.kernels.tuning import Gpu
from vit_fast.workload import Operation

RULE = "the rule's choice"
LARGE = 200e6  # bytes of an operation; some ten times as many in float64


def others() -> dict[str, Any]:
    """The kernels of benchmarks/candidates by name."""
    return {c.name: c for c in CANDIDATES}


def why_left_out(setting: Setting, gpu: Gpu) -> str:
    """Why the kernels of benchmarks/candidates cannot be tried here, or ""."""
    if setting.dry:
        return "need a GPU: left out"
    if gpu.arch != 90:
        return f"are for compute capability 9.0, {gpu.name} has {gpu.arch / 10}: left out"
    return REASON


def unavailable(setting: Setting, why: str) -> dict[str, Any]:
    """The row that tells so."""
    return {"left_out": why, "says": why}


def launcher(op: str, candidate: Any) -> Callable[..., Result]:
    """candidate: a Config of the op's kernel file, None for the rule's choice, or the name of another kernel."""
    if isinstance(candidate, str):
        return others()[candidate].run
    kernel = KERNELS[op]
    return lambda *arguments: kernel.launch(*arguments, config=candidate)


def checked(setting: Setting, operation: Operation, candidate: Any, dtype: str) -> dict[str, Any]:
    arguments = inputs(setting, operation.op, operation.shape, dtype)
    launch = launcher(operation.op, candidate)
    return repeated(
        setting, lambda: launch(*arguments), lambda y: check(operation.op, arguments, y)
    )


def timed(
    setting: Setting,
    operation: Operation,
    choices: dict[str, tuple[str, Any]],
    dtype: str,
    passed: tuple[str, ...],
) -> dict[str, Any]:
    """The rule's choice, and of `choices`, a check's key -> (name, candidate), those that passed.

    `gain`: the rule's time over the best.
    """
    calls = {RULE: launcher(operation.op, None)}
    calls |= {choices[key][0]: launcher(operation.op, choices[key][1]) for key in passed}
    arguments = rotated(setting, operation, dtype)
    programs = by_name([{n: lambda c=c, a=a: c(*a) for n, c in calls.items()} for a in arguments])
    row = rates(operation, in_turn_us(setting, programs, guess_us(operation)))
    gain = round(row["us"][RULE] / row["us"][row["best"]], 3)
    return {**row, "gain": gain, "says": f"{row['best']}: {gain} times the rule's speed"}


def cells(setting: Setting, gpu: Gpu) -> Iterator[Cell]:
    dtype = setting.dtypes[0]
    if why := why_left_out(setting, gpu):
        yield Cell("checks", "benchmarks.candidates", unavailable, dict(why=why), 2.7)
    for order, name, operation, _, _ in shapes(setting):
        choices: dict[str, tuple[str, Any]] = {}
        op, shape, rank = operation.op, operation.shape, 2.7 + order
        found = [(configs.words(c), c) for c in configs.of(op, shape, dtype, gpu)]
        for other in () if why else others().values():
            if other.op == op and other.applies(shape):
                found.append((other.name, other.name))
        for words, candidate in found:
            params = dict(operation=operation, candidate=candidate, dtype=dtype)
            # one that hangs takes GPU time from what is checked beside it, whose limit is longer
            own = not isinstance(candidate, str)
            limit = 60 if own else 20
            # in float64 the larger ones do not fit into the memory side by side
            alone = operation.bytes > LARGE
            check = Cell("checks", f"{name}: {words}", checked, params, rank, 2, limit, alone, ours=own)  # fmt: skip
            choices[check.key] = words, candidate
            yield check
        if found:
            params = dict(operation=operation, choices=choices, dtype=dtype)
            seconds, needs = 1.0 + 0.4 * len(found), tuple(choices)
            yield Cell("candidates", name, timed, params, rank + 0.1, seconds, 120, needs=needs)
