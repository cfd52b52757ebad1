"""The roofline: arithmetic intensity against the rate reached, under the roofs measured on the machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..reporting.words import number, output
from ..results import Case, Results, slug, timed
from .intensity import band, panel
from .notes import absences, marked
from .operations import Bar, Groups, bars_inches, horizontal
from .style import GREY, INK, Look, Picture, save, sheet

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

LAYERS = ("operation", "model")


def draw(results: Results, programs: dict[str, Look], folder: Path) -> list[Picture]:
    """A picture for each dtype that has a roof, and a point or a share to set under it."""
    cases = [c for c in results["cases"] if c["layer"] in LAYERS]
    found = []
    for dtype in dict.fromkeys(c["dtype"] for c in cases):
        known = roofs(results, dtype)
        own = [c for c in cases if c["dtype"] == dtype]
        flat = [c for c in own if streamed(c)] if "copy_gbps" in known else []
        points = panels([c for c in own if pointed(c)]) if known else {}
        if points or flat:
            found.append(picture(results, dtype, points, flat, known, programs, folder))
    return found


def pointed(case: Case) -> bool:
    """A whole model needs no bytes where its operations span the axis."""
    return bool(case["flops"]) and any(r["tflops"] for r in timed(case))


def streamed(case: Case) -> bool:
    """No floating-point operations to speak of: bandwidth is its measure."""
    return bool(case["bytes"]) and not case["flops"] and any(r["gbps"] for r in timed(case))


def roofs(results: Results, dtype: str) -> dict[str, float]:
    """Those of measured_tflops, nominal_tflops and copy_gbps that the file has."""
    found = {**(results["peaks"].get(dtype) or {}), "copy_gbps": results["peaks"].get("copy_gbps")}
    return {k: v for k, v in found.items() if v}


def panels(cases: list[Case]) -> dict[str, list[Case]]:
    """The operations of a model at a batch with the model itself; models without operations share the last one."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        if case["layer"] == "operation" and case["bytes"]:
            found.setdefault(f"{case['title']}, batch {case['batch']}", []).append(case)
    whole = []
    for case in cases:
        if case["layer"] == "model":
            own = found.get(f"{case['title']}, batch {case['batch']}")
            if own is not None or case["bytes"]:
                (whole if own is None else own).append(case)
    return {**found, "Whole models": whole} if whole else found


def picture(
    results: Results,
    dtype: str,
    found: dict[str, list[Case]],
    flat: list[Case],
    known: dict[str, float],
    programs: dict[str, Look],
    folder: Path,
) -> Picture:
    """found: the cases of each panel; flat: those of the bars below them."""
    points = [case for cases in found.values() for case in cases]
    streams = shares(flat, known["copy_gbps"], programs) if flat else []
    heights = [3.5 + band(cases) for cases in found.values()]
    heights += [bars_inches(streams) + 0.3] if streams else []
    shown = {r["program"] for c in [*points, *flat] for r in timed(c)}
    handles = legend(shown, known, programs, points)
    notes = absences([*points, *flat])
    title = f"Roofline, {dtype}"
    figure = sheet(title, results, sum(heights) + 0.1, handles, notes)
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights).ravel()
    for ax, (name, cases) in zip(axes, found.items()):
        panel(ax, cases, known, programs)
        ax.set_title(name)
    if streams:
        bandwidth(axes[-1], streams, known["copy_gbps"], programs)
    path = save(figure, folder / f"roofline_{slug(dtype)}.png")
    caption = (
        "Each point is a program in a case: to the right, floating-point operations for each byte"
        " that must be moved; upwards, the rate reached; both axes logarithmic. The lines are what"
        " was measured on this machine: copying memory (the slope) and a large matrix product"
        " (flat). A point near them has little left to gain, one far below has room. Bytes count"
        " each operand once, so a point above the slope has reused what lay in a cache. Circles are"
        " operations, squares whole models; hollow: beyond the accuracy rule."
    )
    if any(not case["bytes"] for case in points):
        caption += (
            " Whole models whose bytes nobody counts stand on grey, beside the axis: only their height"
            " says something."
        )
    if flat:
        caption += " Operations whose floating-point operations nobody counts stand in bars, against the copy."
    return Picture(path, title, caption, alt(dtype, points, known))


def alt(dtype: str, points: list[Case], known: dict[str, float]) -> str:
    rates = [
        f"{c['title']} {output(c)} batch {c['batch']}: "
        + ", ".join(f"{r['program']} {number(r['tflops'], 3)}" for r in timed(c) if r["tflops"])
        for c in points
        if c["layer"] == "operation"
    ]
    peaks = ", ".join(f"{k.replace('_', ' ')} {number(v)}" for k, v in known.items())
    said = f"Rates under the roofs of {dtype} ({peaks})."
    return f"{said} Operations in TFLOP/s: {'; '.join(rates)}." if rates else said


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
    if "copy_gbps" in known and points:
        words = f"slope: copy of memory, {number(known['copy_gbps'], 3)} GB/s"
        found.append(Line2D([], [], color=INK, lw=1.3, label=words))
    return found


def shares(cases: list[Case], copy_gbps: float, programs: dict[str, Look]) -> Groups:
    """Bars of what each program reaches of the copy's bandwidth."""
    one = len({(c["title"], c["batch"]) for c in cases}) == 1
    found: Groups = []
    for case in cases:
        words = f"{output(case)},\n{case['title']} batch {case['batch']}"
        name = marked(output(case) if one else words, bool(case["disturbed"]))
        rows = {r["program"]: r for r in timed(case) if r["gbps"]}
        bars = [
            Bar(
                p,
                rows[p]["gbps"] / copy_gbps,
                f"{rows[p]['gbps'] / copy_gbps:.0%}   {number(rows[p]['gbps'], 3)} GB/s",
                rows[p]["status"] == "inaccurate",
            )
            for p in programs
            if p in rows
        ]
        found.append((name, bars))
    return found


def bandwidth(ax: Axes, streams: Groups, copy_gbps: float, programs: dict[str, Look]) -> None:
    horizontal(ax, streams, programs)
    ax.set_xlim(0, max(1.15, ax.get_xlim()[1]))
    ax.axvline(1, color=INK, lw=1.3)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set_title(f"Share of the bandwidth of a copy ({number(copy_gbps, 3)} GB/s)")
