"""The model on paper: predicted times of the kernels and of whole models, beside what was measured.

    python -m benchmarks roofline --gpu H200 --model vit-b-16 vit-l-16 [--batch 1 8 32 64 256] [--dtype bf16]
        [--folded]          LayerNorm folded into the products behind it
        [--dependent]       launches that begin before the kernel in front has ended
        [--results FILE]    a results file of the GPU program; default benchmarks/results/<device>/gpu.json
        [--json FILE]       writes the predictions
        [--log FILE]        writes the summary between the two marks in FILE, for benchmarks/LOG.md

Without --folded and --dependent (or --no-folded, --no-dependent) it is as a tuned table of that GPU says, plain where
there is none. One image is predicted in all four ways, whatever was chosen.

costs.py holds the maths, chosen.py asks the kernels' rules and tables, hardware.py holds the figures. Nothing runs on
a GPU. Triton has to be installed, since those rules choose the tiles; without it this says so and exits with 2.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vit_fast.workload import MODELS

from ..hardware import DTYPES, GPUS, Hardware
from .compared import Found, compare, comparison_lines

if TYPE_CHECKING:
    from .prediction import Forecast, Way

BATCHES = (1, 8, 32, 64, 256)
MARKS = ("<!-- roofline: begin -->", "<!-- roofline: end -->")
# a prediction's way, by the name that the GPU program gives it
WORDS = {
    "neither": "plain",
    "pdl": "dependent launches",
    "folded": "LayerNorm folded",
    "folded, pdl": "LayerNorm folded, dependent launches",
}
COLUMNS = ("qkv", "attention", "proj", "fc1", "fc2", "layer_norm")  # of the summary


@dataclass(frozen=True)
class Goal:
    """A goal for the H200 in bf16; `dream` is what would be better still."""

    model: str
    batch: int
    unit: str  # "images/s": at least; "ms": at most
    goal: float
    dream: float

    def verdict(self, value: float) -> str:
        """ "dream", "goal" or "missed"."""
        reached = value.__ge__ if self.unit == "images/s" else value.__le__
        return "dream" if reached(self.dream) else "goal" if reached(self.goal) else "missed"


GOALS = (
    Goal("vit-b-16", 256, "images/s", 14_500, 17_000),
    Goal("vit-l-16", 256, "images/s", 4_300, 5_000),
    Goal("vit-b-16", 1, "ms", 0.20, 0.15),
    Goal("vit-l-16", 1, "ms", 0.40, 0.30),
)


def forecasts(
    hw: Hardware, models: Iterable[str], batches: Iterable[int], dtype: str, way: "Way"
) -> Found:
    """(name of the model, batch) -> its forecast. Needs triton."""
    from .prediction import forecast

    return {(m, b): forecast(hw, MODELS[m], b, dtype, way) for m in models for b in batches}


def kernel_lines(f: "Forecast") -> Iterator[str]:
    yield (
        f"\n{f.model.name}, batch {f.batch}, {f.dtype}: {f.time_us / 1e3:.3f} ms,"
        f" {f.images_per_s:,.0f} images/s; floor {f.floor_us / 1e3:.3f} ms; {WORDS[str(f.way)]}"
    )
    yield "  kernel       count  tile        waves   useful   bound     us each  floor us   share"
    for k in f.kernels:
        yield (
            f"  {k.name:<12} {k.count:>5}  {k.tile:<10} {k.waves:>6.2f}   {k.efficiency:>6.0%}   {k.bound:<8}"
            f" {k.time_us:>8.2f}  {k.floor_us:>8.2f}  {f.share(k):>6.1%}"
        )
    yield (
        f"  launch gaps  {f.launches:>5}  {'':<38} {f.gap_us:>6.2f}  {'':>8}"
        f"  {f.gaps_us / f.time_us:>6.1%}   (counted in the shares above)"
    )


def goal_lines(found: Found) -> Iterator[str]:
    """The goals that these predictions decide. The others are stated against rival programs: measure them."""
    for g in GOALS:
        f = found.get((g.model, g.batch))
        if f is None or f.hw.name != "H200" or f.dtype != "bf16":
            continue
        value = f.images_per_s if g.unit == "images/s" else f.time_us / 1e3
        shown = f"{value:,.0f}" if g.unit == "images/s" else f"{value:.3f}"
        yield (
            f"{f.model.name} batch {g.batch}: {shown} {g.unit}, goal {g.goal:,g}, dream {g.dream:,g}:"
            f" {g.verdict(value)}"
        )


def summary(found: Found) -> Iterator[str]:
    """A table in Markdown, one row for each model and batch, and one line for each goal."""
    head = ("model", "batch", "ms", "images/s", "of the floor", "launch gaps ms", "largest shares")
    each = f"us each (tile): {', '.join(COLUMNS)}"
    yield f"| {' | '.join((*head, each))} |"
    yield "|---" * (len(head) + 1) + "|"
    for f in found.values():
        top = sorted(f.kernels, key=f.share, reverse=True)[:3]
        shares = ", ".join(f"{k.name} {f.share(k):.0%}" for k in top)
        by_name = {k.name: k for k in f.kernels}
        each = ", ".join(
            f"{by_name[c].time_us:.1f} ({by_name[c].tile})" if c in by_name else "-"
            for c in COLUMNS
        )
        yield (
            f"| {f.model.name} | {f.batch} | {f.time_us / 1e3:.3f} | {f.images_per_s:,.0f} |"
            f" {f.floor_us / f.time_us:.0%} of {f.floor_us / 1e3:.3f} | {f.gaps_us / 1e3:.3f} | {shares} | {each} |"
        )
    yield ""
    yield from (f"- {line}" for line in goal_lines(found))


def ways(hw: Hardware, models: Iterable[str], dtype: str) -> Iterator[str]:
    """A table in Markdown: one image in each way that this GPU and dtype have."""
    from .prediction import WAYS, forecast

    own = [w for w in WAYS if not (w.folded and dtype == "fp32") and not (w.dependent and hw.arch < 90)]  # fmt: skip
    names = ("statistics", *COLUMNS)
    head = ("model, batch 1", "way", "launches", "ms", "launch gaps ms")
    yield f"| {' | '.join(head)} | us each: {', '.join(names)} |"
    yield "|---" * (len(head) + 1) + "|"
    for model in models:
        for way in own:
            f = forecast(hw, MODELS[model], 1, dtype, way)
            by_name = {k.name: f"{k.time_us:.1f}" for k in f.kernels}
            each = ", ".join(by_name.get(name, "-") for name in names)
            yield (
                f"| {f.model.name} | {WORDS[str(way)]} | {f.launches} | {f.time_us / 1e3:.3f} |"
                f" {f.gaps_us / 1e3:.3f} | {each} |"
            )


def as_json(hw: Hardware, found: Found) -> dict[str, object]:
    """Predictions as data: what every time rests on, and the times."""
    models = [
        {
            "model": name,
            "batch": batch,
            "dtype": f.dtype,
            "way": WORDS[str(f.way)],
            "ms": f.time_us / 1e3,
            "images_per_s": f.images_per_s,
            "floor_ms": f.floor_us / 1e3,
            "kernels_floor_ms": f.kernels_floor_us / 1e3,
            "launch_gaps_ms": f.gaps_us / 1e3,
            "kernels": [asdict(k) | {"share": f.share(k)} for k in f.kernels],
        }
        for (name, batch), f in found.items()
    ]
    return {"gpu": asdict(hw), "predictions": models}


def write_between_marks(path: Path, lines: Iterable[str]) -> None:
    """Puts `lines` between MARKS in the file. ValueError if it has not both, in order."""
    text = path.read_text()
    head, begin, rest = text.partition(MARKS[0])
    _, end, tail = rest.partition(MARKS[1])
    if not (begin and end):
        raise ValueError(f"{path} has no line {MARKS[0]} with a line {MARKS[1]} after it")
    path.write_text("\n".join([head + begin, *lines, end + tail]))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks roofline", description=__doc__.splitlines()[0])  # fmt: skip
    p.add_argument("--gpu", choices=GPUS, default="H200")
    p.add_argument("--model", nargs="+", choices=MODELS, default=["vit-b-16", "vit-l-16"])
    p.add_argument("--batch", nargs="+", type=int, default=BATCHES, help="images, each at least 1")
    p.add_argument("--dtype", choices=DTYPES, default="bf16")
    choice = argparse.BooleanOptionalAction
    p.add_argument("--folded", action=choice, help="LayerNorm folded into the products behind it")
    p.add_argument("--dependent", action=choice, help="launches that begin early")
    p.add_argument("--results", type=Path, help="a results file of the GPU program")
    p.add_argument("--json", type=Path, help="write the predictions here")
    p.add_argument("--log", type=Path, help="write the summary between the marks in this file")
    return p


def main(argv: list[str] | None = None) -> int:
    """Prints the tables. 0; 2 where triton is not installed or an argument does not fit."""
    args = parser().parse_args(argv)
    if find_spec("triton") is None:
        print(
            "roofline needs triton, since the kernels' rules choose the tiles: pip install triton",
            file=sys.stderr,
        )
        return 2
    hw = GPUS[args.gpu]
    path = args.results or Path(__file__).parent / "results" / hw.slug / "gpu.json"
    try:
        from .chosen import source, switches
        from .prediction import Way

        on = switches(hw)
        asked = args.folded, args.dependent
        folded = on.get("fold", False) and args.dtype != "fp32"
        way = Way(*(b if a is None else a for a, b in zip(asked, (folded, on.get("pdl", False)))))
        ships = way == Way(folded, on.get("pdl", False))
        found = forecasts(hw, args.model, args.batch, args.dtype, way)
        results = json.loads(path.read_text()) if args.results or path.exists() else None
        if results and results.get("machine", {}).get("dry_run"):
            raise ValueError(f"{path} is of a dry run: its times mean nothing")
        compared = [] if results is None else compare(found, results, args.dtype, ships)
        table = [*summary(found), "", *ways(hw, args.model, args.dtype)]
        if args.log:
            write_between_marks(args.log, table)
        if args.json:
            args.json.write_text(json.dumps(as_json(hw, found), indent=1) + "\n")
    except (ValueError, OSError) as problem:
        print(f"roofline: {problem}", file=sys.stderr)
        return 2
    print(
        f"predicted for {hw.name}, not measured: {hw.peak_tflops(args.dtype):.0f} TFLOP/s,"
        f" {hw.copy_tb_s:.2f} TB/s, a launch gap of {hw.launch_gap_us} us;"
        f" tiles from {source(hw)}"
    )
    for f in found.values():
        print(*kernel_lines(f), sep="\n")
    print("", *table, sep="\n")
    if results is not None:
        print(*comparison_lines(compared), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
