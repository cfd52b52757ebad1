"""The roofline: arithmetic intensity against the rate reached, under the roofs measured on the machine."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results import Case, Results, slug, timed
from ..words import number
from .notes import absences, marked
from .style import GREY, HATCH, INK, Look, Picture, log_ticks, save, sheet

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

LAYERS = ("operation", "model")


def pointed(case: Case) -> bool:
    return bool(case["flops"] and case["bytes"]) and any(r["tflops"] for r in timed(case))


def streamed(case: Case) -> bool:
    """No operations to speak of: bandwidth is its measure."""
    return bool(case["bytes"]) and not case["flops"] and any(r["gbps"] for r in timed(case))


def roofs(results: Results, dtype: str) -> dict[str, float]:
    """Those of measured_tflops, nominal_tflops and copy_gbps that the file has."""
    found = dict(results["peaks"].get(dtype) or {})
    found["copy_gbps"] = results["peaks"].get("copy_gbps")
    return {k: v for k, v in found.items() if v}


def draw(results: Results, programs: dict[str, Look], folder: Path) -> list[Picture]:
    """A picture for each dtype that has a roof, and a point or a share to set under it."""
    cases = [c for c in results["cases"] if c["layer"] in LAYERS]
    found = []
    for dtype in dict.fromkeys(c["dtype"] for c in cases):
        known = roofs(results, dtype)
        own = [c for c in cases if c["dtype"] == dtype]
        flat = [c for c in own if streamed(c)] if "copy_gbps" in known else []
        points = [c for c in own if pointed(c)] if known else []
        if points or flat:
            found.append(picture(results, dtype, points, flat, known, programs, folder))
    return found


def panels(cases: list[Case]) -> dict[str, list[Case]]:
    """The operations of a model at a batch with the model itself; models without operations share the last one."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        if case["layer"] == "operation":
            found.setdefault(f"{case['title']}, batch {case['batch']}", []).append(case)
    for case in cases:
        if case["layer"] == "model":
            own = f"{case['title']}, batch {case['batch']}"
            found.setdefault(own if own in found else "whole models", []).append(case)
    if "whole models" in found:
        found["whole models"] = found.pop("whole models")
    return found


def picture(
    results: Results,
    dtype: str,
    points: list[Case],
    flat: list[Case],
    known: dict[str, float],
    programs: dict[str, Look],
    folder: Path,
) -> Picture:
    found = panels(points)
    shown = {r["program"] for c in [*points, *flat] for r in timed(c)}
    bars = sum(1 for c in flat for _ in timed(c))
    heights = [3.6 + band(cases) for cases in found.values()] + (
        [0.2 * bars + 0.75] if flat else []
    )
    title = f"Roofline, {dtype}"
    figure = sheet(
        title,
        results,
        sum(heights) + 0.1,
        legend(shown, known, programs, points),
        absences([*points, *flat]),
    )
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights).ravel()
    for ax, (name, cases) in zip(axes, found.items()):
        roofline(ax, name, cases, known, programs)
    if flat:
        shares(axes[-1], flat, known["copy_gbps"], programs)
    path = save(figure, folder / f"roofline_{slug(dtype)}.png")
    caption = (
        "Each point is a program in a case: operations for each byte that must be moved (to the right), and the rate that"
        " was reached (upwards); both axes logarithmic. The lines are what this machine was measured to do: copying memory"
        " (slope) and a large matrix product (flat). A point on the roof cannot be faster; one far below it can. Bytes"
        " count each operand once, so a point above the slope has reused what lay in a cache. Circles are operations,"
        " squares whole models, hollow ones beyond the accuracy rule."
        + (
            " Operations without FLOPs worth counting are set against the copy in bars."
            if flat
            else ""
        )
    )
    rates = "; ".join(
        f"{c['title']} {c['what']} batch {c['batch']}: "
        + ", ".join(
            f"{r['program']} {number(r['tflops'], 3)} TFLOP/s" for r in timed(c) if r["tflops"]
        )
        for c in points
        if c["layer"] == "operation"
    )
    peaks = ", ".join(f"{k.replace('_', ' ')} {number(v)}" for k, v in known.items())
    return Picture(path, title, caption, f"Rates under the roofs of {dtype} ({peaks}). {rates}")


def legend(
    shown: set[str], known: dict[str, float], programs: dict[str, Look], points: list[Case]
) -> list[Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found: list[Artist] = [
        Patch(facecolor=k.color, label=k.label) for p, k in programs.items() if p in shown
    ]
    for layer, marker, words in (("operation", "o", "operation"), ("model", "s", "whole model")):
        if any(c["layer"] == layer for c in points):
            found.append(Line2D([], [], color=GREY, marker=marker, ms=6, lw=0, label=words))
    return found


def roofline(
    ax: Axes, name: str, cases: list[Case], known: dict[str, float], programs: dict[str, Look]
) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    x = [c["flops"] / c["bytes"] for c in cases]
    y = [r["tflops"] for c in cases for r in timed(c) if r["tflops"]]
    flat = {k: v for k, v in known.items() if k != "copy_gbps"}
    slope = known.get("copy_gbps", 0.0) / 1e3  # TFLOP/s for each operation a byte
    ridge = max(flat.values()) / slope if flat and slope else x[0]
    low, high = min(*x, ridge) / 2.5, max(*x, ridge) * 4
    bottom, top = min(y) / 3, max(*y, *flat.values(), 0.0) * 2
    ceiling = max(flat.values(), default=top)
    if slope:
        end = min(high, ceiling / slope)
        ax.plot([low, end], [low * slope, end * slope], color=INK, lw=1.3)
    for kind, value in flat.items():
        start = value / slope if slope else low
        ax.plot(
            [start, high], [value, value], color=INK, lw=1.3, ls="--" if "nominal" in kind else "-"
        )
        words = f"{'nominal peak' if 'nominal' in kind else 'measured'} {number(value, 3)} TFLOP/s"
        ax.annotate(
            words,
            (high, value),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=7.8,
        )
    for case, at in zip(cases, x):
        size = 5.5 if case["layer"] == "operation" else 6.5
        for row in timed(case):
            if row["tflops"]:
                look, ok = programs[row["program"]], row["status"] == "ok"
                ax.plot(at, row["tflops"], marker="o" if case["layer"] == "operation" else "s", ls="",
                        ms=size + 1.5 * look.ours, mfc=look.color if ok else "white", mec="white" if ok else look.color,
                        mew=0.7 if ok else 1.3, zorder=4 + look.ours)  # fmt: skip
    ax.set_xlim(low, high)
    ax.set_ylim(bottom, top)
    if slope:
        corner = max(low * 1.15, bottom / slope * 1.15)
        ax.annotate(
            f"copy of memory {number(known['copy_gbps'], 3)} GB/s",
            (corner, corner * slope),
            xytext=(4, -2),
            textcoords="offset points",
            fontsize=7.8,
            va="top",
            bbox={"fc": "white", "ec": "none", "pad": 1},
        )
    log_ticks(ax.xaxis, low, high)
    log_ticks(ax.yaxis, bottom, top)
    ax.grid()
    ax.set_title(name)
    ax.set_xlabel("FLOP / byte")
    ax.set_ylabel("TFLOP/s")
    names(ax, cases, x)


def names(ax: Axes, cases: list[Case], x: list[float]) -> None:
    """A name for each case in a row at the foot, moved apart where they would overlap, a thin line up to its points."""
    low, high = (math.log(v) for v in ax.get_xlim())
    places = sorted(
        (math.log(at), label(c, cases), min(r["tflops"] for r in timed(c) if r["tflops"]))
        for c, at in zip(cases, x)
    )
    step = (high - low) / 58
    at = [p[0] for p in places]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + step)
    over = max(0.0, at[-1] - (high - step)) if at else 0.0
    for i in reversed(range(len(at))):
        if over and (i == len(at) - 1 or at[i] > at[i + 1] - step):
            at[i] = min(at[i], high - step if i == len(at) - 1 else at[i + 1] - step)
    bottom, top = ax.get_ylim()
    # the names stand in a band below the points
    share = band(cases) / (2.9 + band(cases))
    floor = bottom / (top / bottom) ** (share / (1 - share))
    for (true, words, lowest), shown in zip(places, at):
        ax.plot(
            [math.exp(shown), math.exp(true), math.exp(true)],
            [bottom, bottom * (top / bottom) ** 0.08, lowest],
            color=GREY,
            lw=0.6,
            zorder=1,
        )
        ax.text(
            math.exp(shown), bottom * 0.97, words, rotation=90, ha="center", va="top", fontsize=7.4
        )
    ax.set_ylim(floor, top)


def band(cases: list[Case]) -> float:
    """Inches that the longest name takes, turned upright."""
    return 0.064 * max(len(label(c, cases)) for c in cases) + 0.12


def label(case: Case, cases: list[Case]) -> str:
    if case["layer"] == "operation":
        return marked(case["what"], bool(case["disturbed"]))
    if any(c["layer"] == "operation" for c in cases):
        return marked("whole model", bool(case["disturbed"]))
    say = f" {case['what']}" if len({c["what"] for c in cases}) > 1 else ""
    return marked(f"{case['title']}{say}, {case['batch']}", bool(case["disturbed"]))


def shares(ax: Axes, cases: list[Case], copy_gbps: float, programs: dict[str, Look]) -> None:
    y, ticks = 0.0, []
    most = 1.0
    many: Any = len({(c["title"], c["batch"]) for c in cases}) > 1
    for case in cases:
        rows = [r for p in programs for r in timed(case) if r["program"] == p and r["gbps"]]
        words = f"{case['title']} {case['what']} batch {case['batch']}" if many else case["what"]
        ticks.append((y + (len(rows) - 1) / 2, marked(words, bool(case["disturbed"]))))
        for row in rows:
            share, look = row["gbps"] / copy_gbps, programs[row["program"]]
            most = max(most, share)
            ax.barh(y, share, 0.9, color=look.color, hatch=HATCH if row["status"] == "inaccurate" else None,
                    edgecolor="white", lw=0)  # fmt: skip
            number_ = f"[{look.number}] " if look.number else ""
            ax.text(
                share + 0.008,
                y,
                f"{number_}{share:.0%}  {number(row['gbps'], 3)} GB/s",
                va="center",
                fontsize=7.8,
            )
            y += 1
        y += 0.5
    ax.axvline(1, color=INK, lw=1.3)
    ax.set_yticks([t for t, _ in ticks], ["\n".join(textwrap.wrap(n, 36)) for _, n in ticks])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(y - 0.5 - 0.4, -0.6)
    ax.set_xlim(0, most * 1.2)
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.grid(axis="x")
    ax.set_title(
        f"share of the copy bandwidth ({number(copy_gbps, 3)} GB/s), operations without FLOPs worth counting"
    )
