"""One panel of the roofline: roofs, points, and a name for each case."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..reporting.words import number, output
from ..results import Case, timed
from .notes import marked
from .style import GREY, INK, Look, log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BODY = 2.85  # inches of a panel that are for the points; the names come in a band below them
NAMES = 56  # that stand side by side


def panel(ax: Axes, cases: list[Case], known: dict[str, float], programs: dict[str, Look]) -> None:
    """`known`: measured_tflops, nominal_tflops, copy_gbps, as far as the file has them."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    placed = [c["flops"] / c["bytes"] for c in cases if c["bytes"]]
    y = [r["tflops"] for c in cases for r in timed(c) if r["tflops"]]
    flat = {k: v for k, v in known.items() if k != "copy_gbps"}
    slope = known.get("copy_gbps", 0.0) / 1e3  # TFLOP/s for each operation a byte
    ridge = max(flat.values()) / slope if flat and slope else placed[0]
    low, edge = min(*placed, ridge) / 2.5, max(*placed, ridge) * 4
    # a model whose bytes nobody counts has no place on the axis: it stands beside it
    beside = iter([edge * 1.9 * 1.6**i for i in range(len(cases))])
    x = [c["flops"] / c["bytes"] if c["bytes"] else next(beside) for c in cases]
    high = max(x) * 1.9 if max(x) > edge else edge
    ax.axvspan(edge, high, color="#f1f1f1", lw=0, zorder=0)
    bottom, top = min(y) / 2.5, max(*y, *flat.values(), 0.0) * 2
    if slope:
        end = min(high, max(flat.values(), default=top) / slope)
        ax.plot([low, end], [low * slope, end * slope], color=INK, lw=1.3)
    for kind, value in flat.items():
        nominal = "nominal" in kind
        start = value / slope if slope else low
        ax.plot([start, high], [value, value], color=INK, lw=1.3, ls="--" if nominal else "-")
    name_roofs(ax, flat, ridge, low, high)
    for case, at in zip(cases, x):
        whole = case["layer"] == "model"
        for row in timed(case):
            if row["tflops"]:
                look, ok = programs[row["program"]], row["status"] == "ok"
                ax.plot(
                    at, row["tflops"], marker="s" if whole else "o", ls="", ms=5.5 + whole + 1.5 * look.ours,
                    mfc=look.color if ok else "white", mec="white" if ok else look.color,
                    mew=0.7 if ok else 1.3, zorder=4 + look.ours,
                )  # fmt: skip
    ax.set_xlim(low, high)
    log_ticks(ax.xaxis, low, edge)
    log_ticks(ax.yaxis, bottom, top)
    ax.grid()
    ax.set_xlabel("FLOP / byte" + ("; on grey: bytes not counted" if high > edge else ""))
    ax.set_ylabel("TFLOP/s")
    names(ax, cases, x, bottom, top)


def name_roofs(ax: Axes, flat: dict[str, float], ridge: float, low: float, high: float) -> None:
    """Above the highest one, from the ridge on, or up to it where there is more room."""
    if not flat:
        return
    said = [
        f"{'nominal (dashed)' if 'nominal' in kind else 'measured'} {number(value, 3)} TFLOP/s"
        for kind, value in flat.items()
    ]
    left = math.log(ridge / low) < 0.6 * math.log(high / low)
    ax.annotate(
        ", ".join(said), (ridge, max(flat.values())), xytext=(0, 4), textcoords="offset points",
        ha="left" if left else "right", fontsize=7.8,
    )  # fmt: skip


def names(ax: Axes, cases: list[Case], x: list[float], bottom: float, top: float) -> None:
    """Upright names in a band at the foot, a thin line from each to its points; sets the limits of the y axis."""
    share = band(cases) / (BODY + band(cases))
    ax.set_ylim(bottom / (top / bottom) ** (share / (1 - share)), top)
    low, high = (math.log(v) for v in ax.get_xlim())
    found = sorted(
        (math.log(at), label(case, cases), min(r["tflops"] for r in timed(case) if r["tflops"]))
        for case, at in zip(cases, x)
    )
    places = apart([at for at, _, _ in found], low, high, (high - low) / NAMES)
    foot, bend = bottom, bottom * (top / bottom) ** 0.07
    for (at, words, lowest), place in zip(found, places):
        shown, true = math.exp(place), math.exp(at)
        ax.plot([shown, true, true], [foot, bend, lowest], color=GREY, lw=0.6, zorder=1)
        ax.text(shown, foot * 0.97, words, rotation=90, ha="center", va="top", fontsize=7.4)


def apart(at: list[float], low: float, high: float, step: float) -> list[float]:
    """Places in the same order, `step` from each other and inside low to high, as near to `at` as that allows.

    Neighbours that are too near become one run around their middle, as often as it takes.
    """
    step = min(step, (high - low) / (len(at) + 1))
    runs: list[list[float]] = []  # first place, members, sum of the places they ask for

    def start(total: float, members: float) -> float:
        middle = total / members - (members - 1) * step / 2
        return min(max(middle, low + step / 2), high - step / 2 - (members - 1) * step)

    for value in at:
        runs.append([start(value, 1), 1, value])
        while len(runs) > 1 and runs[-2][0] + runs[-2][1] * step > runs[-1][0]:
            _, members, total = runs.pop()
            members, total = members + runs[-1][1], total + runs[-1][2]
            runs[-1] = [start(total, members), members, total]
    return [first + i * step for first, members, _ in runs for i in range(int(members))]


def band(cases: list[Case]) -> float:
    """Inches that the longest name takes, upright."""
    return 0.062 * max(len(label(c, cases)) for c in cases) + 0.12


def label(case: Case, cases: list[Case]) -> str:
    """As much of a case as the panel needs to tell it from others."""
    if case["layer"] == "operation":
        return marked(output(case), bool(case["disturbed"]))
    say = f" {output(case)}" if len({output(c) for c in cases if c["layer"] == "model"}) > 1 else ""
    if any(c["layer"] == "operation" for c in cases):
        return marked(f"whole model{say}", bool(case["disturbed"]))
    return marked(f"{case['title']}{say}, {case['batch']}", bool(case["disturbed"]))
