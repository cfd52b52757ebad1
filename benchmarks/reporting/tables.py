"""A results file for the terminal: a table for each case, grouped by layer, the verdict, and how it was measured."""

import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..results import LAYERS, TIMED, Case, Results, Row, commits, ranked, row_of
from .phrases import columns, command, digits, machine, plain, scaled, versions
from .verdict import judged, losses, sentence
from .words import accuracy_share, percent, times

NARROW = 100  # columns where there is no terminal
GAP = 2
LEGEND = (
    "* the best of the accurate programs: by p90 for single images, by images/s for many; none where disturbed. "
    "spread: of the middle half of the calls, over the median. speed-up: in p50, against the case's baseline. "
    "MFU: of the peak that was measured. error: over what the accuracy rule allows, the worse of two measures. "
    "first s: first call, with compilation. MiB: held between calls beside the model, and the peak of a call. "
    "launches: GPU kernels, on a CPU operators of PyTorch."
)


@dataclass(frozen=True)
class Column:
    """`value` is None where a row lacks the number: a layer in which all lack it has no such column."""

    head: Callable[[Case], str]
    value: Callable[[Row], float | None]
    words: Callable[[Case, float], str]
    rank: int  # the highest go first where the terminal is narrow


def text(results: Results, width: int | None = None) -> str:
    """`width` columns; None: as wide as the terminal, or 100 without one. Ends without a line break."""
    width = width or shutil.get_terminal_size((NARROW, 24)).columns
    lines = [*_wrapped(_card(results), width), ""]
    left_out: list[str] = []
    layers = list(dict.fromkeys([*LAYERS, *(case["layer"] for case in results["cases"])]))
    for layer in layers:
        cases = [case for case in results["cases"] if case["layer"] == layer]
        if cases:
            lines += [layer.upper(), *_layer(cases, width, left_out)]
    if not results["cases"]:
        lines += ["No case in this file.", ""]
    lines += _wrapped(LEGEND, width)
    if left_out:
        names = ", ".join(dict.fromkeys(left_out))
        lines += _wrapped(f"Left out at {width} columns: {names}.", width)
    lines.append("")
    for words in _verdict(results):
        lines += _wrapped(words, width, rest="    ")
    lines += _wrapped(f"Method: {_method(results)}", width)
    return "\n".join(line.rstrip() for line in lines)


def _card(results: Results) -> str:
    run = results["run"]
    made = f"{run.get('at') or 'at an unknown time'}, commit {commits(results) or 'unknown'}"
    return f"{machine(results)}; {versions(results)}; {command(results)}; {made}"


def _verdict(results: Results) -> Iterator[str]:
    """Layer by layer; not of ablation, which is ours against ours."""
    for layer in dict.fromkeys(case["layer"] for case in results["cases"]):
        if layer != "ablation":
            yield f"Verdict, {layer}: {sentence(results, layer, 'case')}"
            cells = judged(results, layer)
            yield from (f"  Lost: {words}" for words in losses(cells))
            disturbed = [c.case["name"] for c in cells if c.outcome == "disturbed"]
            if disturbed:
                yield f"  Disturbed: {'; '.join(disturbed)}"
    if not results["cases"]:
        yield "Verdict: none, for there is no case."


def _method(results: Results) -> str:
    method = results["method"]
    if method.get("text"):
        return plain(method["text"])
    return f"programs timed {method.get('order') or 'in an order that the file does not say'}."


def _layer(cases: Sequence[Case], width: int, left_out: list[str]) -> Iterator[str]:
    """The cases of one layer, in the same columns; what did not fit is added to `left_out`."""
    names = [columns(row["program"]) for case in cases for row in case["rows"]]
    # a longer name has a line of its own
    name_width = min(max(names, default=0), max(24, width // 3))
    chosen, widths = _fitting(cases, width - name_width - 2, left_out)
    for case in cases:
        heads = _line([c.head(case) for c in chosen], widths)
        title = case["name"]
        if columns(title) <= name_width + 2:
            yield _padded(title, name_width + 2) + heads
        else:
            yield from _wrapped(title, width)
            if any(row["status"] in TIMED for row in case["rows"]):
                yield " " * (name_width + 2) + heads
        if case["disturbed"]:
            why = f"disturbed: {plain(case['disturbed'])}; these times are not to be trusted"
            yield from _wrapped(why, width, "  ")
        if row_of(case, case["baseline"]) is None:
            why = f"no speed-up: the baseline, {case['baseline']}, was not timed"
            yield from _wrapped(why, width, "  ")
        best = None if case["disturbed"] else next(iter(ranked(case)), None)
        for row in case["rows"]:
            cells = _line([_cell(c, case, row) for c in chosen], widths)
            yield from _row(row, "* " if row is best else "  ", cells, name_width, width)
        yield ""


def _row(row: Row, mark: str, cells: str, name_width: int, width: int) -> Iterator[str]:
    name, why = row["program"], f"{row['status']}: {plain(row['why']) or 'the file gives no reason'}"  # fmt: skip
    if row["status"] == "inaccurate":
        why += "; not ranked"
    found = accuracy_share(row)
    if row["status"] == "wrong" and found is not None:
        why += f" ({digits(found)} times what is allowed)"
    if row["status"] not in TIMED:
        if columns(name) <= name_width:
            name = _padded(name, name_width)
        yield from _wrapped(f"{mark}{name}  {why}", width, "", " " * (name_width + 4))
        return
    if columns(name) > name_width:
        yield from _wrapped(mark + name, width)
        mark, name = "  ", ""
    yield mark + _padded(name, name_width) + cells
    if row["status"] != "ok":
        yield from _wrapped(why, width, " " * 4)


def _columns(cases: Sequence[Case]) -> list[Column]:
    """In the order they are shown."""
    parts = dict.fromkeys(key for case in cases for row in case["rows"] for key in row["parts"] or ())  # fmt: skip
    return [
        *(_milliseconds(q, rank) for q, rank in (("p50", 0), ("p90", 3), ("p99", 8))),
        *(_number(f"{key} s", lambda r, k=key: (r["parts"] or {}).get(k), 2) for key in parts),
        _number("spread", lambda r: r["spread"], 5, percent),
        _number("images/s", lambda r: r["images_s"], 4),
        _number("speed-up", lambda r: r["speed_up"], 1, times),
        Column(_rate_unit, lambda r: r["gbps"] if r["tflops"] is None else r["tflops"], _digits, 6),
        _number("MFU", lambda r: r["mfu"], 7, lambda v: percent(v, 0)),
        _number("error", accuracy_share, 2, lambda v: f"{v:.2f}" if v < 10 else digits(v)),
        _number("first s", lambda r: r["first_s"], 11),
        _number("held MiB", lambda r: r.get("held_mib"), 9),
        _number("peak MiB", lambda r: r["peak_mib"], 10),
        _number("launches", lambda r: r["launches"], 12, lambda v: f"{v:,.0f}"),
    ]


def _digits(_: Case, value: float) -> str:
    return digits(value)


def _number(
    head: str,
    value: Callable[[Row], float | None],
    rank: int,
    words: Callable[[float], str] = digits,
) -> Column:
    return Column(lambda _: head, value, lambda _, v: words(v), rank)


def _milliseconds(quantile: str, rank: int) -> Column:
    """In the unit of the case: that of its fastest program's p50."""
    return Column(
        lambda case: f"{quantile} {_unit(case)[1]}",
        lambda row: row[f"{quantile}_ms"],
        lambda case, ms: digits(ms * _unit(case)[0]),
        rank,
    )


def _unit(case: Case) -> tuple[float, str]:
    return scaled(min((r["p50_ms"] for r in case["rows"] if r["p50_ms"]), default=1.0))


def _rate_unit(case: Case) -> str:
    return "GB/s" if all(r["tflops"] is None for r in case["rows"]) else "TFLOP/s"


def _cell(column: Column, case: Case, row: Row) -> str:
    value = column.value(row)
    return "-" if value is None else column.words(case, value)


def _fitting(
    cases: Sequence[Case], width: int, left_out: list[str]
) -> tuple[list[Column], list[int]]:
    """The columns that have a value and fit into `width`, and how wide each is; the p50 always stays."""
    timed = [(case, row) for case in cases for row in case["rows"] if row["status"] in TIMED]
    chosen = [
        (c, max(len(t) for case, row in timed for t in (c.head(case), _cell(c, case, row))))
        for c in _columns(cases)
        if any(c.value(row) is not None for _, row in timed)
    ]
    while len(chosen) > 1 and sum(w + GAP for _, w in chosen) > width:
        last = max(chosen, key=lambda found: found[0].rank)
        chosen.remove(last)
        left_out.append(last[0].head(cases[0]))
    return [c for c, _ in chosen], [w for _, w in chosen]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(" " * GAP + cell.rjust(w) for cell, w in zip(cells, widths))


def _padded(name: str, width: int) -> str:
    return name + " " * max(0, width - columns(name))


def _wrapped(words: str, width: int, first: str = "", rest: str | None = None) -> list[str]:
    """Lines of at most `width`, those behind the first one indented."""
    rest = first + "  " if rest is None else rest
    return textwrap.wrap(
        words,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        replace_whitespace=False,
        break_on_hyphens=False,
    )
