"""Speed-up over the baseline by model: bars grouped by program, a panel for each dtype and batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..reporting.words import counted, output
from ..results import Case, Results, ranked, slug, timed
from .notes import absences, marked, patches
from .style import GREY, HATCH, INK, RED, Look, Picture, balanced, name_panel, save, sheet

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

SLOTS = 52  # bars and gaps that one line of the picture holds
LEAST_SLOTS = 9  # a panel of fewer is not filled by fat bars
LINE_INCHES = 2.15
LINES = 6  # of one picture; longer ones are divided by dtype
MISSING = {"wrong": "wrong", "failed": "failed", "skipped": "-"}


@dataclass(frozen=True)
class Panel:
    """Cases of one dtype and batch, as many as a line holds, and the programs that each keeps a place for."""

    title: str
    cases: list[Case]
    order: list[str]
    part: bool  # of a panel that goes on in another line

    @property
    def each(self) -> int:
        return len(self.order) + 1  # the bars of a case and a gap

    @property
    def slots(self) -> int:
        return len(self.cases) * self.each


def draw(results: Results, programs: dict[str, Look], folder: Path) -> list[Picture]:
    cases = [c for c in results["cases"] if c["layer"] == "model" and bars(c)]
    if not cases:
        return []
    dtypes = list(dict.fromkeys(c["dtype"] for c in cases))
    if len(dtypes) == 1 or rows_and_columns(panels(cases, programs))[0] <= LINES:
        return [picture(results, cases, programs, folder, "")]
    return [
        picture(results, [c for c in cases if c["dtype"] == d], programs, folder, d) for d in dtypes
    ]


def bars(case: Case) -> list[str]:
    """What has a bar: the baseline is the line at 1."""
    return [r["program"] for r in timed(case) if r["speed_up"] and r["program"] != case["baseline"]]


def panels(cases: list[Case], programs: dict[str, Look]) -> list[Panel]:
    """A panel that is too long for a line goes on in another one, in parts of like length."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(f"{case['dtype']}, batch {case['batch']}", []).append(case)
    found = []
    for title, group in groups.items():
        parts = min(len(group), math.ceil(len(group) * (len(places(group, programs)) + 1) / SLOTS))
        for i in range(parts):
            part = group[-(-i * len(group) // parts) : -(-(i + 1) * len(group) // parts)]
            words = f"{title} ({i + 1} of {parts})" if parts > 1 else title
            found.append(Panel(words, part, places(part, programs), parts > 1))
    return found


def places(cases: list[Case], programs: dict[str, Look]) -> list[str]:
    """What has a place beside each other: timed in one of the cases at least, or lost where it should have been."""
    kept = {p for c in cases for p in bars(c)}
    kept |= {r["program"] for c in cases for r in c["rows"] if r["status"] in ("wrong", "failed")}
    return [p for p in programs if p in kept]


def rows_and_columns(found: list[Panel]) -> tuple[int, int]:
    side = 2 if len(found) in (2, 4) else 3
    columns = max(1, min(len(found), side, SLOTS // max(p.slots for p in found)))
    return math.ceil(len(found) / columns), columns


def picture(
    results: Results, cases: list[Case], programs: dict[str, Look], folder: Path, dtype: str
) -> Picture:
    """Of all dtypes, or of one that is named."""
    found = panels(cases, programs)
    rows, columns = rows_and_columns(found)
    baselines = {c["baseline"] for c in cases}
    baseline = baselines.pop() if len(baselines) == 1 else "the baseline"
    title = ", ".join(filter(None, [f"Speed-up over {baseline}", dtype]))
    shown = {p for panel in found for p in panel.order}
    hatched = any(r["status"] == "inaccurate" for c in cases for r in c["rows"])
    handles = [*patches(shown, programs, hatched), line_of(baseline)]
    figure = sheet(title, results, LINE_INCHES * rows + 0.3, handles, absences(cases))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    top = max(1.0, *(r["speed_up"] for c in cases for r in timed(c) if r["speed_up"]))
    span = max(LEAST_SLOTS, *(panel.slots for panel in found))
    say_what = len({output(c) for c in cases}) > 1
    for i, (ax, panel) in enumerate(zip(axes, found)):
        fill(ax, panel, programs, top, span, 820 / columns / span)
        name_panel(ax, panel.title, columns)
        label(ax, panel, programs, say_what, 820 / columns / span)
        if i % columns == 0:
            ax.set_ylabel("speed-up (p50)")
    for ax in axes[len(found) :]:
        ax.set_axis_off()
    path = save(figure, folder / f"speed_up{'_' + slug(dtype) if dtype else ''}.png")
    caption = (
        f"Each bar is the median time (p50) of {baseline} over that of the program, in one case:"
        f" higher is faster; at 1, the line, it is as fast as {baseline}, below 1 slower. Bold: the"
        " best accurate program of a case that was not disturbed (one image a call is judged by p90, more by images a"
        " second). Hatched: beyond the accuracy rule, so not ranked. Where a bar is"
        " missing a dash or a word stands in its place, and the notes say why. All panels of a"
        " picture have the same scale."
    )
    return Picture(path, title, caption, alt(cases, baseline))


def line_of(baseline: str) -> Artist:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=INK, lw=1, label=f"{baseline} = 1")


def alt(cases: list[Case], baseline: str) -> str:
    best = [(c["name"], ranked(c)[0]) for c in cases if ranked(c)]
    first = [f"{n}: {r['program']} {r['speed_up']:.2f}" for n, r in best if r["speed_up"]]
    said = f"Bars of speed-up over {baseline} in {counted(len(cases), 'case')}."
    return f"{said} Best accurate of each: {'; '.join(first) or 'none'}."


def fill(
    ax: Axes, panel: Panel, programs: dict[str, Look], top: float, span: int, pixels: float
) -> None:
    """`top`: the greatest speed-up of the picture; `span`: slots of an axis, each some `pixels` wide."""
    rotated = pixels < 27
    size = 7.6 if pixels > 12 else 6.8
    for g, case in enumerate(panel.cases):
        best = [r["program"] for r in ranked(case)[:1] if not case["disturbed"]]
        rows = {r["program"]: r for r in case["rows"]}
        for i, program in enumerate(panel.order):
            row, x = rows.get(program), g * panel.each + i
            if row is None or program == case["baseline"]:
                continue
            value = row["speed_up"]
            if value is None:
                word = MISSING.get(row["status"], "-")
                color = GREY if word == "-" else RED
                ax.text(x, 0.03 * top, word, ha="center", fontsize=size, rotation=90, color=color)
                continue
            bad = row["status"] == "inaccurate"
            ax.bar(
                x, value, 0.86, color=programs[program].color, lw=0, alpha=0.75 if bad else 1,
                hatch=HATCH if bad else None, edgecolor="white",
            )  # fmt: skip
            # a value that would stand on the line at 1 stands above it
            crosses = value <= 1 < value + (0.17 if rotated else 0.09) * top
            ax.text(
                x, (1 if crosses else value) + 0.02 * top, f"{value:.2f}", ha="center", va="bottom",
                fontsize=size, rotation=90 if rotated else 0, color=GREY if bad else INK,
                weight="bold" if program in best else "normal",
            )  # fmt: skip
    ax.axhline(1, color=INK, lw=1, zorder=3)
    ax.set_ylim(0, top * (1.24 if rotated else 1.14))
    # what is alone stands in the middle, the last part of a long panel at the left
    middle = (panel.slots - 2) / 2 if not panel.part else (span - 2) / 2
    ax.set_xlim(middle - span / 2, middle + span / 2)
    ax.grid(axis="y")


def label(ax: Axes, panel: Panel, programs: dict[str, Look], say_what: bool, pixels: float) -> None:
    """The names of the models below their bars, and the numbers of the programs where there are many."""
    half = (len(panel.order) - 1) / 2
    names = [f"{c['title']} {output(c)}" if say_what else c["title"] for c in panel.cases]
    names = [marked(n, bool(c["disturbed"])) for n, c in zip(names, panel.cases)]
    width = max(8, int(panel.each * pixels / 6.4))
    places = [g * panel.each for g in range(len(names))]
    ax.set_xticks([x + half for x in places], [balanced(n, width) for n in names], fontsize=8.2)
    numbers = [programs[p].number for p in panel.order]
    ax.tick_params(axis="x", length=0, pad=14 if any(numbers) else 4)
    for x, number in ((x + i, n) for x in places for i, n in enumerate(numbers) if n):
        ax.text(
            x, -0.02, str(number), transform=ax.get_xaxis_transform(), ha="center", va="top",
            fontsize=6.4, color=GREY,
        )  # fmt: skip
