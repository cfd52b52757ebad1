"""A cell: one thing to find out, as data that a worker process can be sent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cell:
    """`run(setting, **params)` gives a row of the results file: a dict of what JSON can hold.

    rank: cells run in this order, the most valuable first.
    seconds: what it is expected to take; it is begun only where that much is left.
    limit: seconds after which its process is ended.
    alone: it is timed, so nothing else may run on the GPU.
    vendor: nothing of this project is in it; the row outlives changes to the kernels.
    ours: a row that is not "ok" is a failure of this project.
    needs: keys of cells before it; `run` is given as `passed` those that came out right.
    """

    section: str
    name: str
    run: Callable[..., Mapping[str, Any]]
    params: Mapping[str, Any] = field(default_factory=dict)
    rank: float = 0.0
    seconds: float = 2.0
    limit: float = 60.0
    alone: bool = True
    vendor: bool = False
    ours: bool = False
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.section}/{self.name}"


def chosen(cells: list[Cell], only: list[str]) -> list[Cell]:
    """Those that one of `only`, SECTION or SECTION:SUBSTRING, names, and those that they need; all without `only`.

    ValueError where one names nothing.
    """
    wanted: set[str] = set()
    for word in only:
        section, _, part = word.partition(":")
        found = {c.key for c in cells if c.section == section and part in c.name}
        if not found:
            sections = ", ".join(sorted({c.section for c in cells}))
            raise ValueError(
                f"--only {word}: no such cell; SECTION[:SUBSTRING] with a section of {sections}"
            )
        wanted |= found
    needed = {need for c in cells if c.key in wanted for need in c.needs}
    kept = [c for c in cells if not only or c.key in wanted | needed]
    return sorted(kept, key=lambda c: c.rank)
