"""Where the time goes: the operations of one model, dtype and batch, the baseline's and ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..results import Case, Results, row_of, slug, timed
from ..words import number
from .notes import absences, marked, patches
from .style import GREY, HATCH, INK, Look, Picture, save, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Key = tuple[str, str, int]  # title, dtype, batch


def by_model(results: Results, keep: str = "operation") -> dict[Key, list[Case]]:
    found: dict[Key, list[Case]] = {}
    for case in results["cases"]:
        if case["layer"] == keep and any(timed(case)):
            found.setdefault((case["title"], case["dtype"], case["batch"]), []).append(case)
    return found


def draw(results: Results, programs: dict[str, Look], folder: Path) -> list[Picture]:
    found = {k: v for k, v in by_model(results).items() if len(v) >= 2}
    return [picture(results, key, cases, programs, folder) for key, cases in found.items()]


def calls(cases: list[Case]) -> list[int] | None:
    """How often a forward pass calls each operation; None unless the file says it of all."""
    counts = [case.get("count") for case in cases]
    return None if None in counts else counts


def picture(
    results: Results, key: Key, cases: list[Case], programs: dict[str, Look], folder: Path
) -> Picture:
    title, dtype, batch = key
    counts = calls(cases)
    shown = [p for p in programs if any(row_of(c, p) for c in cases)]
    # a sum over operations can be compared only between programs that have them all
    whole = [p for p in shown if all(row_of(c, p) for c in cases)] if counts else []
    head = f"Where the time goes: {title} {dtype} batch {batch}"
    bad = any(r["status"] == "inaccurate" for c in cases for r in c["rows"])
    bars = sum(1 for c in cases for _ in timed(c)) + len(whole)
    height = 0.205 * bars + 0.12 * (len(cases) + 1) + 0.7
    figure = sheet(head, results, height, patches(shown, programs, bad), absences(cases))
    ax = figure.subplots()
    panel(ax, cases, counts, shown, whole, programs)
    path = save(figure, folder / f"operations_{slug(' '.join(map(str, key)))}.png")
    unit = "times how often a forward pass calls it" if counts else "of one call"
    caption = (
        f"Median time (p50) of each operation alone, {unit}; shorter is faster. Behind each bar: the time,"
        + (" its share of that program's sum over these operations," if whole else "")
        + " and the speed-up over the case's baseline. Operations are timed one by one, so their sum is not the time of the"
        " whole model: memory between them is warmer or colder, and what is fused across them is missing."
        + ("" if counts else " The file does not say how often a forward pass calls each, so times are not added up.")
    )  # fmt: skip
    said = "; ".join(
        f"{c['what']}: " + ", ".join(f"{r['program']} {number(r['p50_ms'])} ms" for r in timed(c))
        for c in cases
    )
    return Picture(path, head, caption, f"Bars of the time of a call of each operation. {said}.")


def panel(
    ax: Axes,
    cases: list[Case],
    counts: list[int] | None,
    shown: list[str],
    whole: list[str],
    programs: dict[str, Look],
) -> None:
    each = counts or [1] * len(cases)
    totals = {p: sum(row_of(c, p)["p50_ms"] * n for c, n in zip(cases, each)) for p in whole}
    y, ticks, scale = 0.0, [], 0.0
    base = totals.get(cases[0]["baseline"]) if len({c["baseline"] for c in cases}) == 1 else None

    def bar(program: str, ms: float, words: list[str], inaccurate: bool = False) -> None:
        nonlocal y, scale
        look = programs[program]
        ax.barh(
            y,
            ms,
            0.92,
            color=look.color,
            hatch=HATCH if inaccurate else None,
            edgecolor="white",
            lw=0,
        )
        name = f"[{look.number}]" if look.number else ""
        texts.append(
            (
                ms,
                y,
                "  ".join(filter(None, [name, f"{number(ms, 3)} ms", *words])),
                inaccurate,
                look.ours,
            )
        )
        scale = max(scale, ms)
        y += 1

    texts: list[tuple[float, float, str, bool, bool]] = []
    if whole:
        ticks.append((y + (len(whole) - 1) / 2, "sum of these"))
        for p in whole:
            bar(p, totals[p], [f"{base / totals[p]:.2f}x" if base and totals[p] != base else ""])
        y += 0.6
    for case, n in zip(cases, each):
        rows = [row_of(case, p) for p in shown if row_of(case, p)]
        name = marked(f"{case['what']}" + (f"  ×{n}" if counts else ""), bool(case["disturbed"]))
        ticks.append((y + (len(rows) - 1) / 2, name))
        for row in rows:
            p, ms = row["program"], row["p50_ms"] * n
            share = f"{ms / totals[p]:.0%}" if p in totals else ""
            gain = row["speed_up"]
            faster = f"{gain:.2f}x" if gain and p != case["baseline"] else ""
            bar(p, ms, [share, faster], row["status"] == "inaccurate")
        y += 0.6
    for ms, at, words, inaccurate, ours in texts:
        ax.text(ms + scale * 0.008, at, words, va="center", fontsize=7.8,
                color=GREY if inaccurate else INK, weight="bold" if ours else "normal")  # fmt: skip
    ax.set_yticks([t for t, _ in ticks], [name for _, name in ticks])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(y - 0.6 - 0.3, -0.7)
    ax.set_xlim(0, scale * (1.3 if whole else 1.25))
    ax.set_xlabel("ms in a forward pass (p50)" if counts else "ms a call (p50)")
    ax.grid(axis="x")
