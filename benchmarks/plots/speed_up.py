"""Speed-up over the baseline by model: bars grouped by program, a panel for each dtype and batch."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from ..results import Case, Results, ranked, slug, timed
from ..words import counted
from .notes import absences, marked, patches
from .style import GREY, HATCH, INK, Look, Picture, save, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SLOTS = 52  # bars and gaps that one line of the picture holds
LINE_INCHES = 2.15
MISSING = {"wrong": "wrong", "failed": "failed", "skipped": "-"}


def draw(results: Results, programs: dict[str, Look], folder: Path) -> list[Picture]:
    cases = [c for c in results["cases"] if c["layer"] == "model" and len(bars(c)) > 0]
    if not cases:
        return []
    groups = [cases]
    if lines(cases, programs) > 6:
        groups = [
            [c for c in cases if c["dtype"] == d] for d in dict.fromkeys(c["dtype"] for c in cases)
        ]
    return [picture(results, group, programs, folder, len(groups) > 1) for group in groups]


def bars(case: Case) -> list[str]:
    """What has a bar: the baseline is the line at 1."""
    return [r["program"] for r in timed(case) if r["speed_up"] and r["program"] != case["baseline"]]


def panels(cases: list[Case]) -> dict[tuple[str, int], list[Case]]:
    found: dict[tuple[str, int], list[Case]] = {}
    for case in cases:
        found.setdefault((case["dtype"], case["batch"]), []).append(case)
    return found


def slots(cases: list[Case], programs: dict[str, Look]) -> list[str]:
    """The programs that a panel keeps a place for, in the order of all pictures: timed in it somewhere, or lost."""
    kept = {p for c in cases for p in bars(c)}
    kept |= {r["program"] for c in cases for r in c["rows"] if r["status"] in ("wrong", "failed")}
    return [p for p in programs if p in kept and any(p != c["baseline"] for c in cases)]


def grid(cases: list[Case], programs: dict[str, Look]) -> tuple[int, list[list[Case]]]:
    """How many panels stand side by side, and what each holds: a panel that is too long goes on in another line."""
    cells: list[list[Case]] = []
    for found in panels(cases).values():
        each = len(slots(found, programs)) + 1
        parts = math.ceil(len(found) * each / SLOTS)
        size = math.ceil(len(found) / min(parts, len(found)))
        cells += [found[i : i + size] for i in range(0, len(found), size)]
    widest = max(len(cell) * (len(slots(cell, programs)) + 1) for cell in cells)
    return max(1, min(len(cells), 2 if len(cells) in (2, 4) else 3, SLOTS // widest)), cells


def lines(cases: list[Case], programs: dict[str, Look]) -> int:
    columns, cells = grid(cases, programs)
    return math.ceil(len(cells) / columns)


def picture(
    results: Results, cases: list[Case], programs: dict[str, Look], folder: Path, alone: bool
) -> Picture:
    columns, cells = grid(cases, programs)
    count = math.ceil(len(cells) / columns)
    baselines = list(dict.fromkeys(c["baseline"] for c in cases))
    baseline = baselines[0] if len(baselines) == 1 else "each case's baseline"
    dtype = f", {cases[0]['dtype']}" if alone else ""
    title = f"Speed-up over {baseline}{dtype}"
    shown = {p for cell in cells for p in slots(cell, programs)}
    hatched = any(
        r["status"] == "inaccurate" and r["program"] in shown for c in cases for r in c["rows"]
    )
    height = LINE_INCHES * count + 0.3
    notes = absences(cases)
    figure = sheet(title, results, height, patches(shown, programs, hatched), notes)
    top = max(r["speed_up"] for c in cases for r in timed(c) if r["speed_up"])
    axes = figure.subplots(count, columns, squeeze=False, sharey=True).ravel()
    whats = {c["what"] for c in cases}
    widest = max(len(cell) * (len(slots(cell, programs)) + 1) for cell in cells)
    for i, (ax, cell) in enumerate(zip(axes, cells)):
        panel(ax, cell, programs, top, widest, columns, len(whats) > 1)
        if i % columns == 0:
            ax.set_ylabel("speed-up (p50)")
    for ax in axes[len(cells) :]:
        ax.set_axis_off()
    path = save(figure, folder / f"speed_up{'_' + slug(cases[0]['dtype']) if alone else ''}.png")
    caption = (
        f"Each bar is the median time (p50) of {baseline} over that of the program, in one case: higher is faster,"
        f" 1 (the line) is as fast as {baseline}, below 1 is slower. Bold: the best accurate program of the case (one"
        " image a call is judged by p90, more by images a second). Hatched: beyond the accuracy rule, so not ranked."
        " All panels of a picture have the same scale."
    )
    return Picture(path, title, caption, alt(cases, baseline))


def alt(cases: list[Case], baseline: str) -> str:
    best = [(c, ranked(c)) for c in cases]
    first = [
        f"{c['name']}: {r[0]['program']} {r[0]['speed_up']:.2f}"
        for c, r in best
        if r and r[0]["speed_up"]
    ]
    return f"Bars of speed-up over {baseline} in {counted(len(cases), 'case')}. Best accurate of each: {'; '.join(first)}."


def panel(
    ax: Axes,
    cases: list[Case],
    programs: dict[str, Look],
    top: float,
    widest: int,
    columns: int,
    say_what: bool,
) -> None:
    order = slots(cases, programs)
    each = len(order) + 1
    span = max(widest, 9)
    pixels = 820 / columns / span  # of a bar
    rotated = pixels < 27
    size = 7.6 if pixels > 12 else 6.8
    ticks = []
    for g, case in enumerate(cases):
        best = ranked(case)[:1]
        rows = {r["program"]: r for r in case["rows"]}
        for i, program in enumerate(order):
            row, x = rows.get(program), g * each + i
            if row is None or program == case["baseline"]:
                continue
            value = row["speed_up"]
            if value is None:
                word = MISSING.get(row["status"], "-")
                ax.text(x, 0.03 * top, word, ha="center", va="bottom", fontsize=size, rotation=90,
                        color="#B00020" if word == "wrong" else GREY)  # fmt: skip
                continue
            look, inaccurate = programs[program], row["status"] == "inaccurate"
            ax.bar(x, value, 0.86, color=look.color, lw=0, alpha=0.75 if inaccurate else 1,
                   hatch=HATCH if inaccurate else None, edgecolor="white")  # fmt: skip
            # a value that would stand on the line at 1 stands above it
            crosses = value <= 1 < value + (0.17 if rotated else 0.09) * max(top, 1)
            ax.text(x, (1 if crosses else value) + 0.02 * top, f"{value:.2f}", ha="center", va="bottom", fontsize=size,
                    rotation=90 if rotated else 0, weight="bold" if row in best else "normal",
                    color=GREY if inaccurate else INK)  # fmt: skip
        ticks.append((g * each + (len(order) - 1) / 2, case))
    ax.axhline(1, color=INK, lw=1, zorder=3)
    ax.set_ylim(0, max(top, 1) * (1.24 if rotated else 1.14))
    middle = (len(cases) * each - 2) / 2
    ax.set_xlim(middle - span / 2, middle + span / 2)
    chars = max(8, int(each * pixels / 6.6))
    names = [f"{c['title']} {c['what']}" if say_what else c["title"] for _, c in ticks]
    names = [marked(n, bool(c["disturbed"])) for n, (_, c) in zip(names, ticks)]
    ax.set_xticks(
        [x for x, _ in ticks], ["\n".join(textwrap.wrap(n, chars)) for n in names], fontsize=8.2
    )
    numbers = [
        (g * each + i, programs[p].number) for g in range(len(cases)) for i, p in enumerate(order)
    ]
    ax.tick_params(axis="x", length=0, pad=14 if numbers[0][1] else 4)
    for x, own in numbers:
        if own:
            ax.text(
                x,
                -0.02,
                str(own),
                transform=ax.get_xaxis_transform(),
                ha="center",
                va="top",
                fontsize=6.4,
                color=GREY,
            )
    ax.grid(axis="y")
    ax.set_title(f"{cases[0]['dtype']}, batch {cases[0]['batch']}")
