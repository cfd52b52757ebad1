"""python -m benchmarks run: a suite, measured, saved after each case, and reported."""

import argparse
import faulthandler
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from . import cold, measured
from .case import Case
from .measure import ROOT, commit, machine
from .method import Method
from .peaks import peaks
from .registry import SUITES, cases
from .results import FORMAT, Results, ranked, read, slug, timed, write
from .resumed import gone_on, left, put

# seconds of timing a case
SECONDS = {"quick": 4.0, "families": 6.0, "toy": 0.0}
STOPPED = 130  # of a program that the keyboard has ended
PACKAGES = ("triton", "onnxruntime", "openvino", "timm", "onnx", "onnxscript")


def main(argv: list[str], prog: str = "python -m benchmarks run") -> int:
    """Exit status: 0; 1 where a program of ours is wrong or failed, never of a time; 2 where the call is wrong; 130
    where it was stopped.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures vit-fast and its rivals in one run: accuracy against float64 first, then times in turn.\n"
        "Writes one results file, saved after each case, and beside it a page to look at.",
        epilog="suites:\n"
        + "\n".join(
            f"  {name:10}{suite.__doc__.splitlines()[0]}" for name, suite in SUITES.items()
        ),
    )
    parser.add_argument("--suite", default="quick", choices=SUITES, help="default: quick")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT", help="cases with TEXT in the name"
    )
    parser.add_argument(
        "--seconds", type=seconds_of, metavar="S", help="of timing a case; default: 10, quick: 4"
    )
    parser.add_argument("--list", action="store_true", help="name the cases and leave")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: .benchmarks/<device>/<suite>.json"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with that file: what it lacks, and what was disturbed, is measured",
    )
    parser.add_argument(
        "--record", action="store_true", help="to benchmarks/results/<device>/ of this checkout"
    )
    parser.add_argument(
        "--no-pictures", action="store_true", help="leave the page and the plots out"
    )
    args = parser.parse_args(argv)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: PyTorch finds no CUDA device here", file=sys.stderr)
        return 2
    if args.record and not (ROOT / "benchmarks/results").is_dir():
        print(f"--record: {ROOT} is no checkout of vit-fast; say --out FILE", file=sys.stderr)
        return 2
    try:
        chosen = cases(args.suite, device, tuple(args.only))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(case.name for case in chosen))
        return 0
    seconds = SECONDS.get(args.suite, 10.0) if args.seconds is None else args.seconds
    path = args.out or place(args.suite, device, args.record)
    if why := unwritable(path):
        print(why, file=sys.stderr)
        return 2
    if not faulthandler.is_enabled():
        # to a copy: while a rival is built, standard error goes nowhere, and some crash there
        faulthandler.enable(os.fdopen(os.dup(2), "w"), all_threads=False)
    started = begun(
        args.suite, " ".join(argv), device, Method(seconds=seconds), {c.dtype for c in chosen}
    )
    try:
        results = gone_on(path, started) if args.resume else started
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    results = run(chosen, torch.device(device), Method(seconds=seconds), path, results)
    if results["cases"]:
        from .report import show

        show(path, results, pictures=not args.no_pictures)
    if failures(results):
        return 1
    there = {case["name"] for case in results["cases"]}
    return 0 if there >= {case.name for case in chosen} else STOPPED


def unwritable(path: Path) -> str:
    """Why there can be no results file at `path`, or "": to be known before anything is measured. Makes its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{path}: there can be no such file: {error}"
    if path.is_dir():
        return f"{path} is a folder; say --out FILE"
    if path.exists():
        try:
            read(path)  # a new run takes the place of an old one, and of nothing else
        except ValueError as error:
            return f"{error}; it stays as it is, say another --out FILE"
    if not os.access(path.parent, os.W_OK):
        return f"{path}: the folder cannot be written to; say --out FILE"
    return ""


def seconds_of(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a number of seconds, 0 or more")
    return value


def place(suite: str, device: str, record: bool) -> Path:
    """Where a results file goes. git does not look into .benchmarks."""
    folder = ROOT / "benchmarks/results" if record else Path(".benchmarks")
    card = machine(device)
    # processors of one name are not alike
    words = (card["device"], card["processor"]) if card["processor"] else (card["device"],)
    return folder / slug(" ".join(map(str, words))) / f"{suite}.json"


def begun(suite: str, arguments: str, device: str, method: Method, dtypes: set[str]) -> Results:
    """A results file without cases."""
    return {
        "format": FORMAT,
        "machine": {**machine(device), "rivals": {name: version(name) for name in PACKAGES}},
        "run": {
            "suite": suite,
            "arguments": arguments,
            "device": device,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": 0.0,
            "commit": commit(),
            "front": "run" if method.order == "in turn" else "pytest",
        },
        "method": {**asdict(method), "text": method.text(device)},
        "peaks": peaks(torch.device(device), dtypes),
        "cases": [],
    }


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run(
    chosen: list[Case],
    device: torch.device,
    method: Method,
    path: Path,
    results: Results,
    say: Callable[[str], None] = print,
) -> Results:
    """Measures case by case what `results` lacks; what was measured is in the file also if it is stopped."""
    begin, before, cases = time.perf_counter(), results["run"]["seconds"], left(chosen, results)
    if len(cases) < len(chosen):
        say(f"{len(chosen) - len(cases)} of {len(chosen)} cases are in {path}")
    try:
        for i, case in enumerate(cases, 1):
            words = f"[{i}/{len(cases)}] {case.name}"
            at = Progress(words)
            how = cold.measure if case.layer == "cold start" else measured.measure
            found = how(case, device, method, results["peaks"], at)
            at.done()
            put(results, found, chosen)
            results["run"]["seconds"] = round(before + time.perf_counter() - begin, 1)
            write(path, results)
            say(f"{words}: {in_brief(found)}")
    except KeyboardInterrupt:
        say("\nstopped; what was measured until here is kept: --resume goes on")
    return results


class Progress:
    """What is being done now, on one line of a terminal; nothing where nobody looks."""

    def __init__(self, words: str) -> None:
        self.words, self.width = words, 0

    def __call__(self, at: str) -> None:
        if sys.stderr.isatty():
            line = f"{self.words}: {at} ..."
            print(f"\r{line:{self.width}}", end="", file=sys.stderr, flush=True)
            self.width = len(line)

    def done(self) -> None:
        if self.width:
            print("\r" + " " * self.width + "\r", end="", file=sys.stderr, flush=True)


def in_brief(found: dict[str, Any]) -> str:
    rows = [f"{row['program']} {row['p50_ms']:.4g} ms" for row in timed(found)]
    missing = [f"{row['program']} {row['status']}" for row in found["rows"] if row["p50_ms"] is None]  # fmt: skip
    best = ranked(found)
    first = f", first {best[0]['program']}" if best else ""
    return ", ".join(rows + missing) + first + (" (disturbed)" if found["disturbed"] else "")


def failures(results: Results) -> list[str]:
    """What of ours is wrong or failed."""
    return [
        f"{case['name']}: {row['program']} {row['status']}, {row['why']}"
        for case in results["cases"]
        for row in case["rows"]
        if row["ours"] and row["status"] in ("wrong", "failed")
    ]
