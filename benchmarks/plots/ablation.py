"""From eager to fused: what each fusion gains when they are switched on in turn."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ..reporting.words import number, short
from ..results import Case, Results, Row, slug, timed
from .notes import absences, marked
from .style import GREY, HATCH, INK, OURS, RIVALS, Look, Picture, balanced, save, sheet, thousands

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

GAIN, LOSS = "#56B4E9", "#882255"


def draw(results: Results, programs: dict[str, Look], folder: Path) -> list[Picture]:
    cases = [c for c in results["cases"] if c["layer"] == "ablation" and len(list(timed(c))) >= 2]
    return [picture(results, case, folder) for case in cases]


def picture(results: Results, case: Case, folder: Path) -> Picture:
    rows = list(timed(case))
    times = [row["p50_ms"] for row in rows]
    total = times[0] / times[-1]
    title = f"What each step gains: {short(case)}"
    bad = any(row["status"] == "inaccurate" for row in rows)
    height = 0.36 * (len(rows) + 1) + 0.75
    figure = sheet(title, results, height, legend(bad), absences([case]))
    ax = figure.subplots()
    falling(ax, rows, f"{number(times[-1])} ms: {total:.2f} times the speed of the first")
    names = [row["program"] for row in rows]
    ax.set_yticks(range(len(rows) + 1), [balanced(n, 38) for n in [*names, "what remains"]])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(rows) + 0.55, -0.55)
    ax.set_xlim(0, max(times) * 1.24)
    ax.set_xlabel(marked("ms a call (p50)", bool(case["disturbed"])))
    thousands(ax.xaxis)
    ax.grid(axis="x")
    path = save(figure, folder / f"ablation_{slug(short(case))}.png")
    caption = (
        "Read downwards: the first bar is the whole time of the first program, each floating bar what"
        " one more step takes away from it (to the left) or adds (to the right), with its share of the"
        " time before the step; the last bar is what remains. A step's gain depends on the steps"
        " before it. A step that was not timed stands in the notes, and its gain is within the next"
        " one's."
    )
    steps = ", ".join(f"{row['program']} {number(ms)} ms" for row, ms in zip(rows, times))
    alt = f"Falling bars: {steps}; in all {total:.2f} times the speed."
    return Picture(path, title, caption, alt)


def legend(bad: bool) -> list[Artist]:
    from matplotlib.patches import Patch

    found: list[Artist] = [
        Patch(facecolor=GAIN, label="time taken away"),
        Patch(facecolor=LOSS, label="time added"),
    ]
    if bad:
        words = "beyond the accuracy rule"
        found.append(Patch(facecolor="white", edgecolor=INK, hatch=HATCH, lw=0.6, label=words))
    return found


def falling(ax: Axes, rows: list[Row], end: str) -> None:
    """The first time, the change by each step after it, and what remains, with the words `end`."""
    times = [row["p50_ms"] for row in rows]
    scale = max(times)
    ax.barh(0, times[0], 0.66, color=RIVALS[0])
    words = [(times[0], f"{number(times[0])} ms")]
    for i, (before, after) in enumerate(pairwise(times), start=1):
        low, high = sorted((before, after))
        ax.barh(
            i, max(high - low, scale * 0.002), 0.66, left=low, color=GAIN if after <= before else LOSS,
            hatch=HATCH if rows[i]["status"] == "inaccurate" else None, edgecolor="white", lw=0,
        )  # fmt: skip
        change = after - before
        said = f"{change:+,.{places(change)}f} ms ({change / before:+.1%})"
        words.append((high, said.replace("-", "\u2212")))
        ax.plot([before, before], [i - 0.67, i - 0.33], color=GREY, lw=0.8)
    ax.plot([times[-1]] * 2, [len(rows) - 0.67, len(rows) - 0.33], color=GREY, lw=0.8)
    ax.barh(len(rows), times[-1], 0.66, color=OURS[0])
    for y, (x, said) in enumerate([*words, (times[-1], end)]):
        ax.annotate(
            said, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5,
            weight="bold" if y == len(rows) else "normal",
        )  # fmt: skip


def places(change: float) -> int:
    """Of a number of milliseconds, after the point."""
    size = abs(change)
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 4
