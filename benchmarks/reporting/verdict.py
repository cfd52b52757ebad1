"""What a results file says about who is faster: case by case, at equal accuracy, and in a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..results import Case, Results, Row, ranked, score
from .words import counted, number, short

Outcome = Literal["won", "lost", "uncontested", "disturbed", "not run"]


@dataclass(frozen=True)
class Judged:
    """The best accurate row of ours against the best accurate one of the others.

    ratio: the rival's score over ours, above 1 where ours is faster; None unless both are there. close: the two are
    nearer to each other than the larger of their spreads.
    """

    case: Case
    outcome: Outcome
    ours: Row | None
    rival: Row | None
    ratio: float | None
    close: bool


def judge(case: Case) -> Judged:
    order = ranked(case)
    ours = next((r for r in order if r["ours"]), None)
    rival = next((r for r in order if not r["ours"]), None)
    ratio, close = None, False
    if ours and rival:
        ratio = score(case, rival) / score(case, ours)
        close = abs(ratio - 1) < max(r["spread"] or 0.0 for r in (ours, rival))
    outcome: Outcome
    if not order or not any(r["ours"] for r in case["rows"]):
        outcome = "not run"
    elif ours is None:
        outcome = "lost"  # whatever disturbed it: this is not about times
    elif case["disturbed"]:
        outcome = "disturbed"
    elif ratio is None:
        outcome = "uncontested"
    else:
        outcome = "won" if ratio > 1 else "lost"
    return Judged(case, outcome, ours, rival, ratio, close)


def judged(results: Results, layer: str) -> list[Judged]:
    return [judge(case) for case in results["cases"] if case["layer"] == layer]


def rivals(cells: list[Judged]) -> list[str]:
    """The programs of others that are accurate and timed in at least one of the cells that count."""
    counting = [c.case for c in cells if c.outcome in ("won", "lost")]
    return list(dict.fromkeys(r["program"] for c in counting for r in ranked(c) if not r["ours"]))


def sentence(results: Results, layer: str = "model", noun: str = "cell") -> str:
    """How many cells are won, of how many, against how many; what does not count is said, too."""
    cells = judged(results, layer)
    by: dict[str, list[Judged]] = {}
    for cell in cells:
        by.setdefault(cell.outcome, []).append(cell)
    won, lost = by.get("won", []), by.get("lost", [])
    total = len(won) + len(lost)
    if not total:
        said = (
            f"No {noun} of this file that is to be trusted has both an accurate vit-fast and an"
            " accurate rival: it does not say who is faster."
        )
    else:
        said = (
            f"vit-fast is the fastest accurate program in {len(won)} of {counted(total, noun)},"
            f" against {counted(len(rivals(cells)), 'other program')}"
        )
        said += f", and loses {len(lost)}." if lost else "."
        close = sum(c.close for c in won)
        if close:
            said += f" Of the {len(won)} won, {close} by less than the spread of the times."
    rest = {
        "disturbed": "disturbed",
        "uncontested": "without an accurate rival",
        "not run": "without an accurate program or without vit-fast",
    }
    left = [f"{len(by[k])} {words}" for k, words in rest.items() if k in by]
    return f"{said} Not counted: {', '.join(left)}." if left else said


def measure(case: Case, row: Row) -> str:
    """The number that ranks it, with its unit."""
    if case["scenario"] == "single stream":
        return f"{number(row['p90_ms'])} ms (p90)"
    return f"{number(row['images_s'])} images/s"


def losses(cells: list[Judged]) -> list[str]:
    """Each lost cell in words, the worst first; first those without any accurate result of ours."""
    lost = sorted((c for c in cells if c.outcome == "lost"), key=lambda c: c.ratio or 0.0)
    return [loss(cell) for cell in lost]


def loss(cell: Judged) -> str:
    best = f"{cell.rival['program']} reaches {measure(cell.case, cell.rival)}" if cell.rival else ""
    if cell.ours is None:
        rows = [r for r in cell.case["rows"] if r["ours"]]
        why = "; ".join(f"{r['program']} is {r['status']}: {r['why']}" for r in rows)
        return f"{short(cell.case)}: no accurate result of vit-fast ({why}); {best}."
    near = ", less than the spread of the times" if cell.close else ""
    return (
        f"{short(cell.case)}: {best}, {cell.ours['program']} {measure(cell.case, cell.ours)}:"
        f" {1 - cell.ratio:.1%} slower{near}."
    )


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def spans(results: Results, layer: str = "model") -> list[str]:
    """By how much, over the cells that count: against the baseline, and against the best accurate rival."""
    cells = [c for c in judged(results, layer) if c.outcome in ("won", "lost") and c.ratio]
    ups = [c.ours["speed_up"] for c in cells if c.ours["speed_up"]]
    found = []
    for words, values in (
        ("over the baseline of each case (p50)", ups),
        ("over the best accurate rival of each case (by what ranks it)", [c.ratio for c in cells]),
    ):
        if values:
            middle = geometric_mean(values)
            found.append(
                f"Speed-up {words}: {min(values):.2f}x to {max(values):.2f}x, geometric mean {middle:.2f}x"
                f" of {counted(len(values), 'case')}."
            )
    return found
