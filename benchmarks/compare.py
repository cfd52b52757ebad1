"""python -m benchmarks compare OLD NEW [--fail]: what differs between two results files beyond the spread.

benchmarks/changes.py says how times are judged, benchmarks/medians.py what the spread is.

Exit status: 0; with --fail 1 where a program of ours got slower beyond the spread or lost its accuracy (its error
passed what is allowed, or it was accurate and timed before and is not now); 2 where a file is no results file, and,
with --fail, where no time of ours could be judged: then nothing was guarded.
"""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from .regression import medians
from .regression.changes import KINDS, Change, compared, judged
from .regression.pairs import differences, matched
from .reporting.phrases import command, machine, versions
from .results import Results, read


def main(argv: Sequence[str], prog: str = "python -m benchmarks compare") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="results file to compare with")
    parser.add_argument("new", type=Path, metavar="NEW", help="results file to judge")
    parser.add_argument(
        "--fail", action="store_true", help="exit with 1 if a program of ours regressed"
    )
    args = parser.parse_args(argv)
    try:
        old, new = read(args.old), read(args.new)
        changes = compared(old, new)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for line in text(args.old, old, args.new, new, changes):
        print(_wrapped(line))
    if not args.fail:
        return 0
    if any(change.regression for change in changes):
        return 1
    if not any(pair.new["ours"] for pair in judged(old, new)):
        print("--fail: these files have no time of ours in common that could be judged", file=sys.stderr)  # fmt: skip
        return 2
    return 0


def text(
    old_path: Path, old: Results, new_path: Path, new: Results, changes: Sequence[Change]
) -> Iterator[str]:
    """What was compared and how, the changes by kind, and the count."""
    for name, path, results in (("old", old_path, old), ("new", new_path, new)):
        at = results["run"].get("at") or "at an unknown time"
        yield f"{name}: {path}: {machine(results)}; {versions(results)}; {command(results)}; {at}"
    differ = differences(old, new)
    if differ:
        yield f"Machines differ ({'; '.join(differ)}): times are judged by their ratio to the case's baseline alone."
    else:
        yield (
            "One machine, but two runs: times are judged by their ratio to the case's baseline in the same file, and "
            "p50 itself is looked at beside it."
        )
    pairs = judged(old, new)
    disturbed = dict.fromkeys(p.new_case["name"] for p in matched(old, new)[0] if p.disturbed)
    for kind, words in KINDS.items():
        found = [change for change in changes if change.kind == kind]
        if found:
            yield ""
            yield f"{words}:"
        if kind == "clock":
            found, by_case = [], dict.fromkeys(c.case for c in found)
            for case in by_case:
                moved = (
                    f"{c.program} {c.change:+.1%}"
                    for c in changes
                    if (c.kind, c.case) == (kind, case)
                )
                yield f"  {case}: {'; '.join(moved)}"
        for c in found:
            program = f": {c.program}" if c.program else ""
            yield f"  {'! ' if c.regression else ''}{c.case}{program}: {c.why}"
    yield ""
    count = sum(change.regression for change in changes)
    yield (
        f"{len(pairs)} times judged, {sum(p.new['ours'] for p in pairs)} of them ours; "
        f"{count} regression{'s' * (count != 1)} of ours{' (marked !)' * bool(count)}. Of the comparisons of like "
        f"files at most {medians.ALARMS:.0%} name a slower or faster program of ours by chance, "
        f"and {medians.ALARMS:.0%} anything else."
    )
    if disturbed:
        yield f"Disturbed in a file, times there are not judged: {'; '.join(disturbed)}."


def _wrapped(line: str) -> str:
    width = shutil.get_terminal_size((100, 24)).columns
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    wrapped = textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(wrapped)
