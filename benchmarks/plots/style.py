"""What all pictures share: size, colours, the sheet that a picture is drawn on, and logarithmic ticks.

A picture is 9 inches wide and shown at some 900 pixels, so a point is 1.4 pixels. Nothing here touches pyplot or the
backend of whoever imports us: a Figure of its own is drawn with Agg, under an rc_context that ends with the drawing.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..reporting.words import setting
from ..results import LAYERS, Results, timed

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0
DPI = 160
INK, GREY, PALE = "#222222", "#6b6b6b", "#d9d9d9"
OURS = ("#D55E00", "#F08A3C", "#9A4300", "#F9B27C")
# Okabe and Ito's colours and Tol's muted ones, without those that are near ours; the first is for the baseline
RIVALS = (
    "#8F8F8F", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#332288", "#44AA99", "#882255",
    "#E5D53B", "#999933", "#6699CC", "#117733", "#AA4499", "#4D4D4D", "#DDCC77", "#88CCEE", "#661100",
)  # fmt: skip
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "p", "h", "8", "d", "H")
DTYPE_MARKERS = {"fp32": "o", "bf16": "s", "fp16": "^"}
RED = "#B00020"
HATCH = "////"
MARK = "\u2020"  # a dagger behind the name of what was disturbed, and before the note of why
NOTE_INCHES = 0.155
# from so many programs in one layer on colours alone do not tell them apart: they are numbered
NUMBERED_FROM = 9

RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.9,
    "legend.frameon": False,
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Picture:
    path: Path
    title: str
    caption: str  # how to read it
    alt: str  # what a person who does not see it has to know


@dataclass(frozen=True)
class Look:
    """How a program is drawn, the same in all pictures of a file."""

    color: str
    marker: str
    ours: bool
    label: str  # its name, numbered where there are many
    number: int | None  # None where colours are enough


@contextmanager
def style() -> Iterator[None]:
    """ImportError, with what to do, where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install vit-fast[bench]") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the pictures do not depend on anyone's matplotlibrc
        matplotlib.rcParams.update(RC)
        yield


def looks(results: Results) -> dict[str, Look]:
    """The programs in the order in which they are drawn: rivals as they come in the file, then ours.

    The steps of an ablation are no programs. A program of the model layer comes before one of operations alone.
    """
    cases = [c for c in results["cases"] if c["layer"] != "ablation"]
    cases.sort(key=lambda c: c["layer"] != "model")
    ours: dict[str, bool] = {}
    for case in cases:
        baseline = [r for r in case["rows"] if r["program"] == case["baseline"]]
        for row in [*baseline, *case["rows"]]:
            ours.setdefault(row["program"], row["ours"])
    order = sorted(ours, key=lambda program: ours[program])
    many = max((len(timed_in(results, layer)) for layer in LAYERS), default=0) >= NUMBERED_FROM
    found: dict[str, Look] = {}
    for number, program in enumerate(order, start=1):
        own = ours[program]
        nth = sum(look.ours == own for look in found.values())
        colors = OURS if own else RIVALS
        found[program] = Look(
            color=colors[nth % len(colors)],
            marker="*" if own else MARKERS[nth % len(MARKERS)],
            ours=own,
            label=f"{number}  {program}" if many else program,
            number=number if many else None,
        )
    return found


def timed_in(results: Results, layer: str) -> set[str]:
    """The programs of a layer; the steps of an ablation are none."""
    cases = [c for c in results["cases"] if c["layer"] == layer != "ablation"]
    return {row["program"] for case in cases for row in timed(case)}


def sheet(
    title: str,
    results: Results,
    height: float,
    handles: Sequence[Artist] = (),
    notes: Iterable[str] = (),
) -> Figure:
    """A figure whose panels are `height` inches high in all; above them title, machine and legend, below them notes."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    heading = textwrap.wrap(title, 92)
    machine = textwrap.wrap(setting(results), 140)
    lines = [
        (line, note.startswith(MARK))
        for note in notes
        for line in textwrap.wrap(note, 155, subsequent_indent="   ")
    ]
    longest = max((len(str(h.get_label())) for h in handles), default=1)
    columns = max(1, min(len(handles), int((WIDTH - 0.2) / (0.5 + 0.063 * longest))))
    legend = 0.168 * math.ceil(len(handles) / columns) + 0.1 if handles else 0.0
    top = 0.10 + 0.23 * len(heading) + 0.16 * len(machine) + 0.06
    bottom = NOTE_INCHES * len(lines) + (0.16 if lines else 0.06)
    total = top + legend + height + bottom
    figure = Figure(figsize=(WIDTH, total), dpi=DPI)
    figure.set_layout_engine(
        ConstrainedLayoutEngine(
            w_pad=0.07, h_pad=0.06, wspace=0.03, hspace=0.03,
            rect=(0.004, bottom / total, 0.992, height / total),
        )
    )  # fmt: skip
    left = 0.1 / WIDTH
    figure.text(left, 1 - 0.10 / total, "\n".join(heading), va="top", fontsize=11.5, weight="bold")
    y = 1 - (0.13 + 0.23 * len(heading)) / total
    figure.text(left, y, "\n".join(machine), va="top", fontsize=7.8, color=GREY)
    if handles:
        # a legend fills column by column: this order makes it read row by row
        rows = math.ceil(len(handles) / columns)
        full = len(handles) - columns * (rows - 1)
        sizes = [rows if c < full else rows - 1 for c in range(columns)]
        ordered = [handles[c + r * columns] for c, size in enumerate(sizes) for r in range(size)]
        figure.legend(
            handles=ordered, loc="upper left", bbox_to_anchor=(0.02 / WIDTH, 1 - top / total), ncols=columns,
            fontsize=8.5, borderpad=0.2, borderaxespad=0, labelspacing=0.35, columnspacing=1.6, handlelength=1.6,
        )  # fmt: skip
    for up, (line, warning) in enumerate(reversed(lines)):
        y = (0.08 + NOTE_INCHES * up) / total
        figure.text(left, y, line, fontsize=7.6, color=RED if warning else "#444444")
    return figure


def save(figure: Figure, path: Path) -> Path:
    """As PNG with a palette, a third of the size, whatever backend its reader uses."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True, dpi=(DPI, DPI))
    return path


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Plain numbers, 1 2 5 in a decade, or decades alone where there are many."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    values = [s * 10.0**d for d in decades for s in steps]
    if high / low < 4:
        values = [s / 10 * 10.0**d for d in decades for s in range(10, 100, 5)]
    values = [v for v in values if low * 0.999 <= v <= high * 1.001]
    axis.set_major_locator(FixedLocator(values))
    axis.set_major_formatter(FixedFormatter([f"{v:,.10g}" for v in values]))
    axis.set_minor_locator(NullLocator())


def balanced(text: str, width: int) -> str:
    """`text` in as few lines as `width` characters allow, and of like length; breaks at blanks, - and /."""
    pieces = re.findall(r"[^\s/-]*[/-]+|[^\s/-]+\s*|\s+", text)

    def wrapped(most: int) -> list[str]:
        lines = [""]
        for piece in pieces:
            if lines[-1] and len((lines[-1] + piece).rstrip()) > most:
                lines.append("")
            lines[-1] += piece
        return [line.strip() for line in lines]

    fewest = len(wrapped(width))
    for less in range(1, width):
        lines = wrapped(less)
        if len(lines) == fewest and max(map(len, lines)) <= less:
            return "\n".join(lines)
    return "\n".join(wrapped(width))


def name_panel(ax: Axes, text: str, columns: int) -> None:
    """A title that stays over its own one of `columns` panels."""
    ax.set_title(balanced(text, {1: 100, 2: 48}.get(columns, 30)))


def thousands(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
