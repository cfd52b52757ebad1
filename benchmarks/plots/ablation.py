"""From eager to fused: what each fusion gains when they are switched on in turn."""

from __future__ import annotations

import textwrap
from pathlib import Path

from ..results import Case, Results, Row, slug, timed
from ..words import number, short
from .notes import absences, marked
from .style import GREY, HATCH, INK, OURS, PALE, RIVALS, Look, Picture, save, sheet

GAIN, LOSS = "#56B4E9", "#882255"


def draw(results: Results, programs: dict[str, Look], folder: Path) -> list[Picture]:
    cases = [c for c in results["cases"] if c["layer"] == "ablation" and len(list(timed(c))) >= 2]
    return [picture(results, case, folder) for case in cases]


def gains(rows: list[Row]) -> list[float]:
    """Milliseconds that each step after the first takes away; negative where it adds some."""
    return [before["p50_ms"] - after["p50_ms"] for before, after in zip(rows, rows[1:])]


def picture(results: Results, case: Case, folder: Path) -> Picture:
    rows = list(timed(case))
    from matplotlib.patches import Patch

    first, last = rows[0], rows[-1]
    total = first["p50_ms"] / last["p50_ms"]
    title = f"What each step gains: {short(case)}"
    bad = [r for r in rows if r["status"] == "inaccurate"]
    legend = [
        Patch(facecolor=c, label=w) for c, w in ((GAIN, "time taken away"), (LOSS, "time added"))
    ]
    if bad:
        legend.append(
            Patch(
                facecolor="white",
                edgecolor=INK,
                hatch=HATCH,
                lw=0.6,
                label="beyond the accuracy rule",
            )
        )
    figure = sheet(title, results, 0.36 * (len(rows) + 1) + 0.75, legend, absences([case]))
    ax = figure.subplots()
    scale = max(r["p50_ms"] for r in rows)
    names = [first["program"]]
    ax.barh(0, first["p50_ms"], 0.66, color=RIVALS[0])
    ax.text(
        first["p50_ms"] + 0.01 * scale,
        0,
        f"{number(first['p50_ms'])} ms",
        va="center",
        fontsize=8.5,
    )
    for i, (before, row, gain) in enumerate(zip(rows, rows[1:], gains(rows)), start=1):
        low, high = sorted((before["p50_ms"], row["p50_ms"]))
        ax.barh(i, max(high - low, scale * 0.002), 0.66, left=low, color=GAIN if gain >= 0 else LOSS,
                hatch=HATCH if row in bad else None, edgecolor="white", lw=0)  # fmt: skip
        ax.plot([before["p50_ms"]] * 2, [i - 0.67, i - 0.33], color=GREY, lw=0.8)
        said = f"{-gain:+,.{places(gain)}f} ms ({-gain / before['p50_ms']:+.1%})".replace(
            "-", "\u2212"
        )
        ax.text(high + 0.01 * scale, i, said, va="center", fontsize=8.5)
        names.append(row["program"])
    end = len(rows)
    ax.plot([last["p50_ms"]] * 2, [end - 0.67, end - 0.33], color=GREY, lw=0.8)
    ax.barh(end, last["p50_ms"], 0.66, color=OURS[0])
    said = f"{number(last['p50_ms'])} ms: {total:.2f} times the speed of the first"
    ax.text(last["p50_ms"] + 0.01 * scale, end, said, va="center", fontsize=8.5, weight="bold")
    names = ["\n".join(textwrap.wrap(n, 38)) for n in [*names, "all of them"]]
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(end + 0.55, -0.55)
    ax.set_xlim(0, scale * 1.24)
    ax.set_xlabel(marked("ms a call (p50)", bool(case["disturbed"])))
    ax.grid(axis="x", color=PALE)
    path = save(figure, folder / f"ablation_{slug(short(case))}.png")
    caption = (
        "Read downwards: the first bar is the whole time of the first program, each floating bar what one more step takes"
        " away from it (left) or adds (right), with its share of the time before the step; the last bar is what remains."
        " A step's gain depends on the steps before it. A step that was not timed is in the notes, and its gain is then"
        " within the next one's."
    )
    steps = ", ".join(f"{r['program']} {number(r['p50_ms'])} ms" for r in rows)
    return Picture(
        path, title, caption, f"Falling bars: {steps}; in all {total:.2f} times the speed."
    )


def places(gain: float) -> int:
    size = abs(gain)
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 4
