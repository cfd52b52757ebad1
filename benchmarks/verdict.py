"""Who is ahead in each case, computed from a results file.

A case counts where a program of ours was asked for and some other program is accurate. Ours, the best of them, wins
where it is accurate and ahead in what programs are ranked by (p90 for single images, images/s for many). A case that
was disturbed counts for nobody, and neither does ablation, which is ours against ours.
"""

from dataclasses import dataclass

from .results import Case, Results, Row, score
from .words import digits, duration, percent, plain, ranked


@dataclass(frozen=True)
class Cell:
    """A case, our best program in it, and the best of the others. `ahead`: 0.1 where ours is 10% faster than it."""

    case: Case
    ours: Row | None
    rival: Row
    ahead: float | None
    why: str = ""


@dataclass(frozen=True)
class Verdict:
    won: list[Cell]
    lost: list[Cell]
    no_answer: list[Cell]  # no program of ours is accurate: wrong, failed or skipped
    disturbed: list[Case]
    alone: list[Case]  # no accurate program to win against

    @property
    def counted(self) -> int:
        return len(self.won) + len(self.lost) + len(self.no_answer)


def verdict(results: Results) -> Verdict:
    found = Verdict([], [], [], [], [])
    for case in results["cases"]:
        ours = [r for r in case["rows"] if r["ours"]]
        if not ours or case["layer"] == "ablation":
            continue
        order = ranked(case)
        best = next((r for r in order if r["ours"]), None)
        rival = next((r for r in order if not r["ours"]), None)
        if rival is None:
            found.alone.append(case)
        elif best is None:
            why = "; ".join(f"{r['program']} is {r['status']}: {plain(r['why'])}" for r in ours)
            found.no_answer.append(Cell(case, None, rival, None, why))
        elif case["disturbed"]:
            found.disturbed.append(case)
        else:
            ahead = score(case, rival) / score(case, best) - 1
            (found.won if ahead > 0 else found.lost).append(Cell(case, best, rival, ahead))
    return found


def sentences(results: Results) -> list[str]:
    """The verdict in words: the count, each loss with by how much, what was not counted and why."""
    v = verdict(results)
    if not v.counted:
        said = ["Verdict: no case of this file has a program of ours beside an accurate other one."]
    else:
        said = [f"Verdict: ours is first in {len(v.won)} of {v.counted} cases, among accurate programs."]  # fmt: skip
    if v.won:
        least = min(v.won, key=lambda c: c.ahead)
        said[0] += f" Narrowest: {least.case['name']}, by {percent(least.ahead)}."
    for cell in v.lost:
        behind = score(cell.case, cell.ours) / score(cell.case, cell.rival) - 1
        said.append(
            f"Lost: {cell.case['name']}: {cell.ours['program']} takes {percent(behind)} longer than "
            f"{cell.rival['program']} ({_judged(cell.case, cell.ours)} against "
            f"{_judged(cell.case, cell.rival).removeprefix('p90 ')})."
        )
    said += [f"No answer of ours: {c.case['name']}: {c.why}." for c in v.no_answer]
    if v.disturbed:
        names = "; ".join(case["name"] for case in v.disturbed)
        said.append(f"Disturbed and not counted, {len(v.disturbed)}: {names}.")
    if v.alone:
        names = "; ".join(case["name"] for case in v.alone)
        said.append(f"Without an accurate other program and not counted, {len(v.alone)}: {names}.")
    return said


def _judged(case: Case, row: Row) -> str:
    """What the programs of a case are ranked by."""
    if case["scenario"] == "single stream":
        return f"p90 {duration(row['p90_ms'])}"
    return f"{digits(row['images_s'])} images/s"
