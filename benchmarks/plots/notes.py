"""What a picture leaves out, and why: the lines below it, and its legend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..reporting.words import accuracy_share, counted, short
from ..results import Case, Row
from .style import HATCH, INK, MARK, Look

if TYPE_CHECKING:
    from matplotlib.artist import Artist

MOST = 9
FEW = 3  # disturbed cases that are named


def shortened(text: str, most: int = 150) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "\u2026"


def patches(programs: Iterable[str], looked: dict[str, Look], inaccurate: bool) -> list[Artist]:
    """A legend of bars."""
    from matplotlib.patches import Patch

    shown = set(programs)
    found: list[Artist] = [
        Patch(facecolor=look.color, label=look.label) for p, look in looked.items() if p in shown
    ]
    if inaccurate:
        found.append(
            Patch(facecolor="white", edgecolor=INK, hatch=HATCH, lw=0.6, label="beyond the accuracy rule, not ranked")
        )  # fmt: skip
    return found


def absences(cases: list[Case]) -> list[str]:
    """Ours first where it is wrong, then what failed, was skipped, is inaccurate, was disturbed."""
    lines: dict[tuple[str, str, str], list[tuple[Case, Row]]] = {}
    for case in cases:
        for row in case["rows"]:
            if row["status"] != "ok":
                # numbers in the reasons differ from case to case: the worst of them is said once
                why = "" if row["status"] == "inaccurate" else shortened(row["why"])
                lines.setdefault((row["status"], row["program"], why), []).append((case, row))
    order = ("wrong", "failed", "skipped", "inaccurate")
    found = []
    for (status, program, why), where in sorted(lines.items(), key=lambda i: order.index(i[0][0])):
        place = short(where[0][0]) if len(where) == 1 else f"{len(where)} of {len(cases)} cases"
        if len(where) == len(cases) > 1:
            place = f"all {len(cases)} cases"
        if status == "inaccurate":
            share = max((accuracy_share(r) or 0.0 for _, r in where), default=0.0)
            worst = (
                f"up to {share:.3g} times the error that the rule allows"
                if share > 1
                else shortened(where[0][1]["why"])
            )
            found.append(f"Inaccurate: {program} in {place}, {worst}.")
        else:
            said = {"wrong": "WRONG, not timed", "failed": "Failed", "skipped": "Skipped"}[status]
            found.append(f"{said}: {program} in {place}: {ended(why)}")
    found += disturbances(cases)
    if len(found) > MOST:
        left = len(found) - MOST + 1
        found = [
            *found[: MOST - 1],
            f"And {counted(left, 'more note')}, in the tables of the report.",
        ]
    return found


def disturbances(cases: list[Case]) -> list[str]:
    """Each disturbed case with its first reason; where there are many, how many."""
    bad = [case for case in cases if case["disturbed"]]
    if len(bad) > FEW:
        every = "all" if len(bad) == len(cases) else f"{len(bad)} of"
        return [
            f"{MARK} Disturbed, not to be trusted: {every} {len(cases)} cases of this picture;"
            " the tables of the report have the reasons."
        ]
    found = []
    for case in bad:
        first, *more = case["disturbed"].split("; ")
        rest = f" (and {counted(len(more), 'more reason')})" if more else ""
        found.append(
            f"{MARK} Disturbed, not to be trusted: {short(case)}: {ended(shortened(first) + rest)}"
        )
    return found


def ended(text: str) -> str:
    """With a full stop, unless it was cut."""
    return text if text.endswith(("\u2026", ".")) else f"{text}."


def marked(words: str, disturbed: bool) -> str:
    return f"{words} {MARK}" if disturbed else words
