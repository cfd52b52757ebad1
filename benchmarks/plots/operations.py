"""Where the time goes: the operations of one model, dtype and batch, the baseline's and ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..reporting.words import number, output
from ..results import Case, Results, row_of, slug, timed
from .notes import absences, marked, patches
from .style import GREY, HATCH, INK, Look, Picture, save, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Key = tuple[str, str, int, str]  # title, dtype, batch, cache
Groups = list[tuple[str, list["Bar"]]]  # a name, and the bars beside it


@dataclass(frozen=True)
class Bar:
    program: str
    length: float
    words: str  # what stands behind it
    inaccurate: bool = False


def draw(results: Results, programs: dict[str, Look], folder: Path) -> list[Picture]:
    found: dict[Key, list[Case]] = {}
    for case in results["cases"]:
        if case["layer"] == "operation" and any(timed(case)):
            found.setdefault(
                (case["title"], case["dtype"], case["batch"], case["cache"]), []
            ).append(case)
    kept = ((key, once(cases)) for key, cases in found.items())
    return [
        picture(results, key, cases, programs, folder) for key, cases in kept if len(cases) >= 2
    ]


def once(cases: list[Case]) -> list[Case]:
    """Those that a forward pass is made of: one that joins two of them has no count, and would be added up twice."""
    return [c for c in cases if c.get("count") is not None] or cases


def calls(cases: list[Case]) -> list[int] | None:
    """How often a forward pass calls each operation; None unless the file says it of all."""
    counts = [case.get("count") for case in cases]
    return None if None in counts else counts


def picture(
    results: Results, key: Key, cases: list[Case], programs: dict[str, Look], folder: Path
) -> Picture:
    title, dtype, batch, cache = key
    counts = calls(cases)
    shown = [p for p in programs if any(row_of(c, p) for c in cases)]
    # a sum over operations compares only programs that have them all
    whole = [p for p in shown if all(row_of(c, p) for c in cases)] if counts else []
    groups = grouped(cases, counts, shown, whole)
    place = f"{title} {dtype} batch {batch}{', cold' if cache == 'cold' else ''}"
    head = f"Where the time goes: {place}"
    bad = any(r["status"] == "inaccurate" for c in cases for r in c["rows"])
    handles = patches(shown, programs, bad)
    figure = sheet(head, results, bars_inches(groups), handles, absences(cases))
    ax = figure.subplots()
    horizontal(ax, groups, programs)
    ax.set_xlabel("ms in a forward pass (p50)" if counts else "ms a call (p50)")
    path = save(figure, folder / f"operations_{slug(place)}.png")
    unit = "times how often a forward pass calls it" if counts else "of one call"
    sums = ", its share of that program's sum over these operations," if whole else ""
    caption = (
        f"Median time (p50) of each operation alone, {unit}; shorter is faster. Behind each bar: the"
        f" time{sums} and the speed-up over the case's baseline. Operations are timed one by one, so"
        " their sum is not the time of the whole model: what lies in caches between them differs,"
        " and what is fused across them is missing."
    )
    if not counts:
        caption += (
            " The file does not say how often a forward pass calls each: nothing is added up."
        )
    said = "; ".join(
        f"{c['what']}: " + ", ".join(f"{r['program']} {number(r['p50_ms'])} ms" for r in timed(c))
        for c in cases
    )
    return Picture(path, head, caption, f"Bars of the time of a call of each operation. {said}.")


def grouped(
    cases: list[Case], counts: list[int] | None, shown: list[str], whole: list[str]
) -> Groups:
    """The bars of each operation, behind those of the sum for the programs in `whole`."""
    each = counts or [1] * len(cases)
    sums = {p: sum(row_of(c, p)["p50_ms"] * n for c, n in zip(cases, each)) for p in whole}
    baselines = {c["baseline"] for c in cases}
    base = sums.get(baselines.pop()) if len(baselines) == 1 else None
    found: Groups = []
    if whole:
        bars = [
            Bar(
                p, s, spaced(f"{number(s, 3)} ms", f"{base / s:.2f}x" if base and s != base else "")
            )
            for p, s in sums.items()
        ]
        found.append(("sum of these", bars))
    for case, n in zip(cases, each):
        bars = []
        for row in filter(None, (row_of(case, p) for p in shown)):
            p, ms = row["program"], row["p50_ms"] * n
            gain = row["speed_up"] if p != case["baseline"] else None
            words = spaced(
                f"{number(ms, 3)} ms",
                small_percent(ms / sums[p]) if p in sums else "",
                f"{gain:.2f}x" if gain else "",
            )
            bars.append(Bar(p, ms, words, row["status"] == "inaccurate"))
        name = f"{output(case)}  \u00d7{n}" if counts else output(case)
        found.append((marked(name, bool(case["disturbed"])), bars))
    return found


def spaced(*words: str) -> str:
    return "   ".join(filter(None, words))


def small_percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def bars_inches(groups: Groups) -> float:
    return 0.195 * sum(len(bars) for _, bars in groups) + 0.12 * len(groups) + 0.65


def horizontal(ax: Axes, groups: Groups, programs: dict[str, Look]) -> None:
    """Groups of bars downwards, the words of each behind it, with room for the longest."""
    scale = max(bar.length for _, bars in groups for bar in bars)
    # a character is some 0.0085 of the axis
    room = max(b.length / scale + 0.0088 * (len(b.words) + 5) for _, bars in groups for b in bars)
    y, middles = 0.0, []
    for _, bars in groups:
        middles.append(y + (len(bars) - 1) / 2)
        for bar in bars:
            look = programs[bar.program]
            ax.barh(
                y, bar.length, 0.92, color=look.color, hatch=HATCH if bar.inaccurate else None,
                edgecolor="white", lw=0,
            )  # fmt: skip
            ax.annotate(
                f"[{look.number}] {bar.words}" if look.number else bar.words, (bar.length, y), xytext=(4, -0.5),
                textcoords="offset points", va="center", fontsize=7.8, color=GREY if bar.inaccurate else INK,
                weight="bold" if look.ours else "normal",
            )  # fmt: skip
            y += 1
        y += 0.6
    ax.set_yticks(middles, [name for name, _ in groups])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(y - 0.9, -0.7)
    ax.set_xlim(0, scale * max(room, 1.05))
    ax.grid(axis="x")
