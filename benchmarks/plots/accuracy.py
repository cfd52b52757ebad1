"""Throughput against accuracy: images a second over the share of the allowed error, for each model and batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ..reporting.words import accuracy_share, number, output
from ..results import Case, Results, Row, slug, timed
from .notes import absences, marked
from .style import (
    DTYPE_MARKERS,
    GREY,
    INK,
    Look,
    Picture,
    log_ticks,
    name_panel,
    save,
    sheet,
    thousands,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

LEAST = 1e-3  # an error of zero has a place on the logarithmic axis
# where a number stands beside its point, in pixels, the best first
SIDES = ((19, 0), (-19, 0), (0, 19), (0, -19), (17, 15), (-17, -15))
Key = tuple[str, str]  # title, what


def point(row: Row) -> tuple[float, float] | None:
    share = accuracy_share(row)
    if share is None or not math.isfinite(share) or not row["images_s"]:
        return None
    return max(share, LEAST), row["images_s"]


def draw(results: Results, programs: dict[str, Look], folder: Path) -> list[Picture]:
    cases = [c for c in results["cases"] if c["layer"] == "model" and any(map(point, timed(c)))]
    batches = sorted({c["batch"] for c in cases})
    # the least and the greatest batch: one image is judged by latency, and the rest lie between
    return [
        picture(results, [c for c in cases if c["batch"] == b], programs, folder, len(batches) > 2)
        for b in dict.fromkeys((batches[0], batches[-1]))
    ] if cases else []  # fmt: skip


def picture(
    results: Results, cases: list[Case], programs: dict[str, Look], folder: Path, more: bool
) -> Picture:
    batch = cases[0]["batch"]
    found: dict[Key, list[Case]] = {}
    for case in cases:
        found.setdefault((case["title"], output(case)), []).append(case)
    shown = {r["program"] for c in cases for r in timed(c) if point(r)}
    dtypes = list(dict.fromkeys(c["dtype"] for c in cases))
    columns = min(len(found), 2 if len(found) in (2, 4) else 3)
    rows = math.ceil(len(found) / columns)
    title = f"Throughput against accuracy, batch {batch}"
    bad = any(r["status"] == "inaccurate" for c in cases for r in c["rows"])
    handles = legend(shown, dtypes, programs, bad)
    figure = sheet(title, results, 2.6 * rows + 0.2, handles, absences(cases))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    shares = [point(r)[0] for c in cases for r in timed(c) if point(r)]
    low, high = min(*shares, 0.5) / 1.6, max(*shares, 1.0) * 1.8
    for i, (ax, (key, group)) in enumerate(zip(axes, found.items())):
        panel(ax, group, programs)
        name = " ".join(key) if len({k[1] for k in found}) > 1 else key[0]
        name_panel(ax, marked(name, any(c["disturbed"] for c in group)), columns)
        ax.set_xlim(low, high)
        log_ticks(ax.xaxis, low, high)
        ax.tick_params(labelbottom=True)
        if i % columns == 0:
            ax.set_ylabel("images/s")
        if i + columns >= len(found):
            ax.set_xlabel("error / allowed error")
    for ax in axes[len(found) :]:
        ax.set_axis_off()
    if any(programs[p].number for p in shown):
        figure.draw_without_rendering()  # the panels have their places now
        for ax, group in zip(axes, found.values()):
            numbers(ax, group, programs)
    path = save(figure, folder / f"accuracy_batch_{slug(str(batch))}.png")
    caption = (
        "Upwards is faster, to the left is nearer to float64. The line at 1 is the accuracy rule: what"
        " lies right of it is not ranked. The share is the worse of two measures (largest error, worst"
        " row), each over what the rule allows in that dtype: shares of two dtypes are shares of"
        " different allowances."
    )
    if more:
        caption += " Drawn for the least and the greatest batch; the tables have all."
    said = "; ".join(
        f"{c['name']}: {', '.join(map(words, filter(point, timed(c))))}" for c in cases
    )
    alt = f"Points of images per second against the share of the allowed error. {said}."
    return Picture(path, title, caption, alt)


def words(row: Row) -> str:
    share, images_s = point(row)
    return f"{row['program']} {number(images_s)} images/s at {number(share, 2)}"


def legend(
    shown: set[str], dtypes: list[str], programs: dict[str, Look], bad: bool
) -> list[Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found: list[Artist] = [
        Patch(facecolor=k.color, label=k.label) for p, k in programs.items() if p in shown
    ]
    marks = [(DTYPE_MARKERS.get(d, "D"), d, INK) for d in dtypes]
    found += [Line2D([], [], color=c, marker=m, ms=6, lw=0, label=d) for m, d, c in marks]
    found.append(Line2D([], [], color=INK, lw=1.2, ls="--", label="limit of the accuracy rule"))
    if bad:
        words = "beyond it: not ranked"
        found.append(Line2D([], [], color=INK, marker="o", mfc="white", ms=6, lw=0, label=words))
    return found


def panel(ax: Axes, cases: list[Case], programs: dict[str, Look]) -> None:
    for case in cases:
        for row in timed(case):
            at = point(row)
            if at is None:
                continue
            look = programs[row["program"]]
            ok = row["status"] == "ok"
            ax.plot(
                *at, marker=DTYPE_MARKERS.get(case["dtype"], "D"), ms=9 if look.ours else 7, ls="",
                mfc=look.color if ok else "white", mec="white" if ok else look.color,
                mew=0.8 if ok else 1.6, zorder=4 if look.ours else 3, clip_on=False,
            )  # fmt: skip
    ax.set_xscale("log")
    ax.set_ylim(0, max(point(r)[1] for c in cases for r in timed(c) if point(r)) * 1.1)
    thousands(ax.yaxis)
    ax.axvline(1, color=INK, lw=1.2, ls="--", zorder=2)
    ax.grid()


def numbers(ax: Axes, cases: list[Case], programs: dict[str, Look]) -> None:
    """The number of a program beside its point, on a side where nothing else stands, or nowhere; limits are set."""
    rows = [row for case in cases for row in timed(case) if point(row)]
    points = [tuple(ax.transData.transform(point(row))) for row in rows]
    taken: list[tuple[float, float]] = []
    for row, (x, y) in zip(rows, points):
        number = programs[row["program"]].number
        others = [p for p in points if p != (x, y)]
        clear = [
            (x + dx, y + dy)
            for dx, dy in SIDES
            if all(apart((x + dx, y + dy), t, 18, 16) for t in taken)
            and all(apart((x + dx, y + dy), p, 16, 14) for p in others)
        ]
        if number and clear:
            taken.append(clear[0])
            at = ax.transData.inverted().transform(clear[0])
            ax.text(*at, str(number), ha="center", va="center", fontsize=6.6, color=GREY)


def apart(a: tuple[float, float], b: tuple[float, float], across: float, down: float) -> bool:
    return abs(a[0] - b[0]) > across or abs(a[1] - b[1]) > down
