"""From nothing to the first answer: import, load, first call."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from ..reporting.words import number, short
from ..results import Case, Results, Row
from .notes import absences, marked
from .style import INK, Look, Picture, save, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIVAL_PARTS = ("#C9CED6", "#8D97A6", "#525C6B", "#2C333D", "#A9B0BB", "#6F7988")
OUR_PARTS = ("#F9CFAF", "#F08A3C", "#D55E00", "#8A3C00", "#F4B483", "#B84F00")


def with_parts(case: Case) -> list[Row]:
    return [r for r in case["rows"] if r["status"] in ("ok", "inaccurate") and r["parts"]]


def draw(results: Results, programs: dict[str, Look], folder: Path) -> list[Picture]:
    from matplotlib.patches import Patch

    cases = [c for c in results["cases"] if c["layer"] == "cold start" and with_parts(c)]
    if not cases:
        return []
    parts = list(dict.fromkeys(p for c in cases for r in with_parts(c) for p in r["parts"]))
    legend = [
        Patch(facecolor=RIVAL_PARTS[i % len(RIVAL_PARTS)], label=p) for i, p in enumerate(parts)
    ]
    if any(r["ours"] for c in cases for r in with_parts(c)):
        legend.append(Patch(facecolor=OUR_PARTS[2], label="vit-fast: the same in orange"))
    title = "Cold start: from nothing to the first answer"
    sizes = [len(with_parts(c)) for c in cases]
    figure = sheet(
        title, results, sum(0.33 * n + 0.62 for n in sizes) + 0.1, legend, absences(cases)
    )
    ratios = [0.33 * n + 0.4 for n in sizes]
    axes = figure.subplots(len(cases), 1, squeeze=False, sharex=True, height_ratios=ratios).ravel()
    most = max(sum(r["parts"].values()) for c in cases for r in with_parts(c))
    for ax, case in zip(axes, cases):
        panel(ax, case, parts, most)
    axes[-1].set_xlabel("seconds")
    path = save(figure, folder / "cold_start.png")
    caption = (
        "Seconds in a process of its own until the first answer: importing, loading and preparing the model, and the"
        " first call with whatever is compiled or packed in it. Shorter is better. Behind the bar: the sum"
        " of the parts, and the whole process (p50), in which Python starts and ends, too."
    )
    alt = "; ".join(
        f"{short(c)}: "
        + ", ".join(
            f"{r['program']} {number(sum(r['parts'].values()), 3)} s" for r in with_parts(c)
        )
        for c in cases
    )
    return [Picture(path, title, caption, f"Stacked bars of seconds. {alt}.")]


def panel(ax: Axes, case: Case, parts: list[str], most: float) -> None:
    rows = with_parts(case)
    for y, row in enumerate(rows):
        left = 0.0
        for i, part in enumerate(parts):
            seconds = row["parts"].get(part, 0.0)
            tones = OUR_PARTS if row["ours"] else RIVAL_PARTS
            color = tones[i % len(tones)]
            ax.barh(y, seconds, 0.72, left=left, color=color, edgecolor="white", lw=0.8)
            if seconds > 0.05 * most:
                dark = sum(int(color[k : k + 2], 16) for k in (1, 3, 5)) < 380
                ax.text(left + seconds / 2, y, number(seconds, 2), ha="center", va="center", fontsize=7.8,
                        color="white" if dark else INK)  # fmt: skip
            left += seconds
        words = f"{number(left, 3)} s   (process {number(row['p50_ms'] / 1e3, 3)} s)"
        ax.annotate(
            words, (left, y), xytext=(5, 0), textcoords="offset points", va="center",
            weight="bold" if row["ours"] else "normal", fontsize=8.2,
        )  # fmt: skip
    ax.set_yticks(range(len(rows)), ["\n".join(textwrap.wrap(r["program"], 38)) for r in rows])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(rows) - 0.45, -0.55)
    ax.set_xlim(0, most * 1.33)
    ax.set_title(marked(short(case), bool(case["disturbed"])))
    ax.grid(axis="x")
