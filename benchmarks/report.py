"""python -m benchmarks report FILE: a results file as a table, with pictures and a page, or as Markdown.

FILE may be a folder: then the newest results file in it is shown, by when it was run. The table goes to the terminal.
Pictures go to a folder of FILE's name, the page to FILE's name with .html, both beside FILE or in --out.

Exit status: 0; 1 where --check finds a README that is not up to date; 2 where FILE is no results file, or the README
has no place for it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .reporting import markdown, tables
from .results import Results, read


def main(argv: Sequence[str], prog: str = "python -m benchmarks report") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="results file, or a folder of them")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for pictures and the page")
    parser.add_argument("--no-pictures", action="store_true", help="the table alone")
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="print the whole models as Markdown, and nothing else",
    )
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="README.md",
        help="put that Markdown between the marks in this file that name FILE, and do nothing else",
    )
    parser.add_argument(
        "--check", action="store_true", help="only say whether --readme is up to date"
    )
    args = parser.parse_args(argv)
    if args.check and not args.readme:
        parser.error("--check needs --readme README.md")
    if args.markdown and args.readme:
        parser.error("--markdown prints, --readme writes: choose one")
    if (args.markdown or args.readme) and (args.out or args.no_pictures):
        parser.error("--markdown and --readme make no pictures: leave --out and --no-pictures away")
    # a terminal that cannot write a character shows its code, and does not stop the report
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        path, results = found(args.file)
        if args.markdown:
            print(markdown.ratios(results, str(path)))
            return 0
        if args.readme:
            return _readme(args.readme, path, results, args.check)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    show(path, results, pictures=not args.no_pictures, out=args.out)
    return 0


def found(path: Path) -> tuple[Path, Results]:
    """The results file at `path`, or the newest one in that folder and those in it. OSError, ValueError: none."""
    if not path.is_dir():
        return path, read(path)
    all_found = []
    for file in sorted(path.rglob("*.json")):
        try:
            all_found.append((file, read(file)))
        except ValueError:
            continue  # other files may lie there, too
    if not all_found:
        raise ValueError(
            f"{path} holds no results file of this suite; make one with `python -m benchmarks run`"
        )
    return max(all_found, key=lambda pair: str(pair[1]["run"].get("at") or ""))


def show(
    path: Path,
    results: Results,
    say: Callable[[str], object] = print,
    pictures: bool = True,
    out: Path | None = None,
) -> list[Path]:
    """The table, by `say`, then pictures and the page of the results at `path`; returns what was written.

    `out`: the folder for them, beside `path` if None. Without matplotlib there are none, and it is said.
    """
    say(tables.text(results))
    if not pictures:
        return []
    folder = out or path.parent
    try:
        from .plots import draw

        drawn = draw(results, folder / path.stem)
    except (ImportError, RuntimeError) as error:
        say(f"No pictures: {error}")
        drawn = []
    written = [picture.path for picture in drawn]
    try:
        from .reporting.page import write

        written.append(write(results, drawn, folder / f"{path.stem}.html"))
    except (ImportError, RuntimeError) as error:
        say(f"No page: {error}")
    for file in written:
        say(f"written to {file}")
    return written


def _readme(readme: Path, path: Path, results: Results, check: bool) -> int:
    changed = markdown.include(readme, path, results, check)
    if check and changed:
        print(f"{readme} is not up to date: python -m benchmarks report {path} --readme {readme}")
        return 1
    print(f"{readme} {'now has' if changed else 'is up to date with'} the table of {path}")
    return 0
