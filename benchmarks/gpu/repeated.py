"""Runs of a kernel on the same input, into memory that is NaN until it is written."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.programs import KERNELS, Result, check, each
from benchmarks.gpu.setting import Setting


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            # cuBLAS would like a fixed workspace for its part
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def repeated(
    setting: Setting, run: Callable[[], Result], judged: Callable[[Result], dict[str, Any]]
) -> dict[str, Any]:
    """The row that `judged` makes of the first of several runs, and by how much the others differ from it."""
    with poisoned_memory():
        results = [run() for _ in range(setting.repeats)]
    apart = 0.0
    for other in results[1:]:
        for first, again in zip(each(results[0]), each(other)):
            # NaN is no difference where the first has it too: the rule speaks of that
            apart = max(apart, float((again.double() - first.double()).nan_to_num().abs().max()))
            apart += int((again.isnan() != first.isnan()).sum())
    row = {**judged(results[0]), "runs_differ_by": apart}
    return {**row, "says": f"runs on the same input differ by {apart:.3g}"} if apart else row


def kernel_row(setting: Setting, op: str, arguments: tuple, **how: Any) -> dict[str, Any]:
    """The row of a kernel on these arguments; `how` goes to its launcher."""
    return repeated(
        setting, lambda: KERNELS[op].launch(*arguments, **how), lambda y: check(op, arguments, y)
    )
