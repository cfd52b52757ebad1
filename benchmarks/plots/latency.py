"""Latency against batch, log-log: a panel for each model and dtype that has two batches or more."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ..reporting.words import output
from ..results import Case, Results, slug, timed
from .notes import absences, marked
from .style import GREY, INK, Look, Picture, log_ticks, name_panel, save, sheet

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

Key = tuple[str, str, str]  # title, what, dtype


def draw(results: Results, programs: dict[str, Look], folder: Path) -> list[Picture]:
    found: dict[Key, list[Case]] = {}
    for case in results["cases"]:
        if case["layer"] == "model" and any(timed(case)):
            found.setdefault((case["title"], output(case), case["dtype"]), []).append(case)
    found = {k: v for k, v in found.items() if len({c["batch"] for c in v}) >= 2}
    if not found:
        return []
    groups = [found]
    if len(found) > 9:
        groups = [
            {k: v for k, v in found.items() if k[2] == d}
            for d in dict.fromkeys(k[2] for k in found)
        ]
    return [picture(results, group, programs, folder, len(groups) > 1) for group in groups]


def picture(
    results: Results,
    found: dict[Key, list[Case]],
    programs: dict[str, Look],
    folder: Path,
    alone: bool,
) -> Picture:
    cases = [c for v in found.values() for c in v]
    dtype = next(iter(found))[2]
    title = f"Latency by batch{', ' + dtype if alone else ''}"
    columns = min(len(found), 2 if len(found) in (2, 4) else 3)
    rows = math.ceil(len(found) / columns)
    shown = {r["program"] for c in cases for r in timed(c)}
    figure = sheet(
        title, results, 2.75 * rows + 0.2, legend(shown, cases, programs), absences(cases)
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for i, (ax, (key, group)) in enumerate(zip(axes, found.items())):
        panel(ax, group, programs)
        name = " ".join(key[:2]) if len({k[1] for k in found}) > 1 else key[0]
        disturbed = any(c["disturbed"] for c in group)
        name_panel(ax, marked(f"{name}, {key[2]}", disturbed), columns)
        if i % columns == 0:
            ax.set_ylabel("ms a call (p50, whisker to p90)")
        if i + columns >= len(found):
            ax.set_xlabel("batch (images a call)")
    for ax in axes[len(found) :]:
        ax.set_axis_off()
    path = save(figure, folder / f"latency{'_' + slug(dtype) if alone else ''}.png")
    caption = (
        "Time of a call against images in it, both axes logarithmic: lower is faster; a line that is flat has room for"
        " more images in the same time, one that rises like the dotted line takes as long an image as before. The point"
        " is the median, the whisker ends at p90. Dashed lines and hollow points: beyond the accuracy rule."
    )
    names = ", ".join(f"{k[0]} {k[2]}" for k in found)
    return Picture(
        path,
        title,
        caption,
        f"Lines of median latency by batch and program for {names}; the numbers are in the tables.",
    )


def legend(shown: set[str], cases: list[Case], programs: dict[str, Look]) -> list[Artist]:
    from matplotlib.lines import Line2D

    found: list[Artist] = [
        Line2D(
            [], [], color=k.color, marker=k.marker, ms=7 if k.ours else 4.5, lw=1.6, label=k.label
        )
        for p, k in programs.items()
        if p in shown
    ]
    if any(r["status"] == "inaccurate" for c in cases for r in c["rows"]):
        found.append(
            Line2D(
                [],
                [],
                color=INK,
                marker="o",
                mfc="white",
                ms=4.5,
                ls="--",
                lw=1.2,
                label="beyond the accuracy rule",
            )
        )
    return found


def panel(ax: Axes, cases: list[Case], programs: dict[str, Look]) -> None:
    cases = sorted(cases, key=lambda c: c["batch"])
    batches = list(dict.fromkeys(c["batch"] for c in cases))
    shown = [p for p in programs if any(r["program"] == p for c in cases for r in timed(c))]
    for i, program in enumerate(shown):
        look = programs[program]
        points = [(c["batch"], r) for c in cases for r in timed(c) if r["program"] == program]
        bad = any(r["status"] == "inaccurate" for _, r in points)
        # a hair apart, so that whiskers do not hide one another
        step = min(1.025, 1.15 ** (1 / len(shown)))
        x = [b * step ** (i - (len(shown) - 1) / 2) for b, _ in points]
        y = [r["p50_ms"] for _, r in points]
        up = [max(0.0, r["p90_ms"] - r["p50_ms"]) for _, r in points]
        ax.errorbar(
            x, y, yerr=[[0.0] * len(y), up], color=look.color, marker=look.marker, ms=8 if look.ours else 4.5,
            mfc="white" if bad else look.color, ls="--" if bad else "-", lw=2 if look.ours else 1.3, elinewidth=1,
            capsize=2, zorder=4 if look.ours else 3,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    slowest = max(r["p50_ms"] for c in cases if c["batch"] == batches[0] for r in timed(c))
    ax.plot(
        [batches[0], batches[-1]],
        [slowest * 1.3, slowest * 1.3 * batches[-1] / batches[0]],
        ls=":",
        lw=1,
        color=GREY,
        zorder=1,
    )
    high = max(high, slowest * 1.5 * batches[-1] / batches[0])
    ax.set_ylim(low, high)
    log_ticks(ax.yaxis, low, high)
    ax.set_xlim(batches[0] / 1.25, batches[-1] * 1.25)
    ax.set_xticks(batches, [str(b) for b in batches])
    ax.minorticks_off()
    ax.grid()
