"""The whole models of a results file as a Markdown table, and that table inside a README.

Between two lines of a Markdown file

    <!-- benchmarks: benchmarks/results/amd_epyc/cpu.json -->
    <!-- /benchmarks -->

stands the table of the file named, its path from the root of the repository. What is in a fenced block is text.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..results import TIMED, Case, Results, Row, commits, ranked, read, row_of
from .phrases import brief, command, digits, machine, plain, scaled, versions
from .words import accuracy_share

START = re.compile(r"<!-- benchmarks: (.+?) -->")
END = "<!-- /benchmarks -->"
FENCE = re.compile(r" {0,3}(```+|~~~+)")


def ratios(results: Results, link: str | None = None) -> str:
    """A row a model, dtype and batch; a column a program; then what the marks mean, and where it is from.

    `link`: the path of the results file, as the Markdown is to link it. Ends without a line break.
    """
    cases = [case for case in results["cases"] if case["layer"] == "model"]
    programs = dict.fromkeys(row["program"] for case in cases for row in case["rows"])
    shown = [p for p in programs if any(row_of(case, p) for case in cases)]
    if not shown:
        return f"No whole model was timed.\n\n{_notes(cases)}{_made(results, link)}"
    outputs = len({case["what"] for case in cases}) > 1
    head = ["model", *["output"] * outputs, "dtype", "batch", *map(_safe, shown)]
    lines = [_line(head), _line(["---"] * len(head))]
    for case in cases:
        own = [_safe(case["title"]), *[_safe(case["what"])] * outputs, case["dtype"]]
        batch = f"{case['batch']}{' ‡' * bool(case['disturbed'])}"
        best = None if case["disturbed"] else next(iter(ranked(case)), None)
        rows = {row["program"]: row for row in case["rows"]}
        lines.append(_line([*own, batch, *(_cell(rows.get(p), best) for p in shown)]))
    return "\n".join(lines) + f"\n\n{_notes(cases)}{_made(results, link)}"


def _line(entries: Sequence[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _cell(row: Row | None, best: Row | None) -> str:
    if row is None:
        return ""
    if row["status"] not in TIMED or not row["p50_ms"]:
        return row["status"] if row["status"] in ("wrong", "failed") else "-"
    ms = row["p50_ms"]
    scale, unit = scaled(ms)
    words = digits(ms * scale) + ("" if unit == "ms" else f" {unit}")
    if row["speed_up"] is not None:
        words += f" ({row['speed_up']:.2f}×)"
    if row["status"] == "inaccurate":
        return f"{words} †"
    return f"**{words}**" if row is best else words


def _notes(cases: Sequence[Case]) -> str:
    baselines = " or ".join(dict.fromkeys(f'"{_safe(case["baseline"])}"' for case in cases))
    said = []
    if any(row_of(case, row["program"]) for case in cases for row in case["rows"]):
        said.append(
            f"ms a call, medians; in brackets: how many times as fast as {baselines}, in the same row; bold: the best "
            "of the accurate programs, by p90 at batch 1 and by images/s at larger ones."
        )
    kinds = {
        "inaccurate": "† beyond the accuracy rule, and not ranked",
        "wrong": "wrong: beyond the accuracy rule, and not timed",
        "failed": "failed",
        "skipped": "skipped",
    }
    for status, words in kinds.items():
        found = _listed(cases, status)
        said += [f"{words}: {'; '.join(found)}."] if found else []
    disturbed = [case for case in cases if case["disturbed"]]
    if disturbed:
        names = "; ".join(
            f"{_safe(case['name'])}: {_safe(brief(case['disturbed']))}" for case in disturbed
        )
        said.append(f"‡ disturbed, its times are not to be trusted and nobody is ahead: {names}.")
    return "".join(f"{line}\n\n" for line in said)


def _listed(cases: Sequence[Case], status: str) -> list[str]:
    """Programs that share a status for one reason, each said once with the rows it holds in."""
    places: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        for row in case["rows"]:
            if row["status"] == status:
                # errors differ from row to row: the worst is said below
                why = "" if (accuracy_share(row) or 0) > 1 else _safe(row["why"]).rstrip(".")
                places.setdefault((row["program"], why), []).append(case)
    return [
        f"{_safe(program)} ({why or _worst(program, found)}) in {_rows(found, cases)}"
        for (program, why), found in places.items()
    ]


def _worst(program: str, cases: Sequence[Case]) -> str:
    rows = (row for case in cases for row in case["rows"] if row["program"] == program)
    worst = max((accuracy_share(row) or 0 for row in rows), default=0)
    return f"up to {digits(worst)} times the error allowed" if worst > 1 else "no reason given"


def _rows(found: Sequence[Case], cases: Sequence[Case]) -> str:
    """Which of all rows, in the fewest words: all, those of a dtype, or their names."""
    if len(found) == len(cases) > 1:
        return "all rows"
    dtypes = dict.fromkeys(case["dtype"] for case in found)
    if len(found) > 1 and len(found) == sum(case["dtype"] in dtypes for case in cases):
        return " and ".join(dtypes)
    return ", ".join(_safe(case["name"]) for case in found)


def _made(results: Results, link: str | None) -> str:
    """The one line behind the table: machine, versions, the file, and how it was made."""
    run = results["run"]
    file = f"; [{_safe(Path(link).name)}]({link.replace(' ', '%20')})" if link else ""
    commit = f" at commit {commits(results, 10)}" if commits(results) else ""
    at = f" on {run['at'][:10]}" if run.get("at") else ""
    return (
        f"{_safe(machine(results))}; {_safe(versions(results))}{file}, made by "
        f"`{plain(command(results)).replace('`', '')}`{commit}{at}."
    )


def _safe(words: str) -> str:
    """Text that is neither a column's end nor markup nor a comment."""
    return re.sub(r"([\\|*_`<\[\]])", r"\\\1", plain(words))


@dataclass(frozen=True)
class Block:
    """Lines `first` to `last`, both without, hold the table of the file at `path`."""

    path: str
    first: int
    last: int


def include(readme: Path, path_of_results: Path, results: Results, check: bool = False) -> bool:
    """Puts the table of `results` between the marks that name its file; True if that changes `readme`.

    Everything else stays byte for byte. `check` writes nothing. ValueError, with what to do, where `readme` is not
    there, has marks without their partners, or none for this file.
    """
    root = _root(readme)
    wanted = path_of_results.resolve()
    found = _replaced(readme, lambda p: results if (root / p).resolve() == wanted else None, check)
    if found is None:
        named = os.path.relpath(wanted, root).replace(os.sep, "/")
        raise ValueError(
            f"{readme} has no place for {path_of_results}; put these two lines where the table is to stand:\n"
            f"<!-- benchmarks: {named} -->\n{END}"
        )
    return found


def refresh(readme: Path, check: bool = False) -> bool:
    """The same for every file that `readme` names, which is read; False, too, where it names none."""
    root = _root(readme)

    def named(path: str) -> Results:
        try:
            return read(root / path)
        except OSError as error:
            raise ValueError(
                f"{readme} has a table of {path}, which cannot be read ({error.strerror}); correct the path, from "
                f"{root}, or measure it with `python -m benchmarks run`"
            ) from None

    return bool(_replaced(readme, named, check))


def _replaced(readme: Path, of: Callable[[str], Results | None], check: bool) -> bool | None:
    """None where `of` has results for no block."""
    try:
        old = readme.read_bytes().decode("utf-8")
    except OSError as error:
        raise ValueError(
            f"{readme} cannot be read ({error.strerror}); name a Markdown file"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{readme} is not UTF-8 ({error}); name a Markdown file") from None
    lines = old.splitlines(keepends=True)
    given = [(block, of(block.path)) for block in blocks(lines, readme)]
    given = [(block, results) for block, results in given if results is not None]
    for block, results in reversed(given):
        link = os.path.relpath(_root(readme) / block.path, readme.parent).replace(os.sep, "/")
        end = re.search(r"[\r\n]*$", lines[block.first - 1])[0]
        body = ratios(results, link).splitlines()
        lines[block.first : block.last] = [line + end for line in ("", *body, "")]
    new = "".join(lines)
    if new != old and not check:
        half = readme.with_name(readme.name + ".tmp")
        half.write_bytes(new.encode("utf-8"))
        os.replace(half, readme)
    return new != old if given else None


def blocks(lines: Sequence[str], readme: Path) -> list[Block]:
    """What stands between marks; ValueError names the line of one without its partner."""
    found: list[Block] = []
    open_at, fence = None, ""

    def refused(at: int, why: str) -> ValueError:
        return ValueError(f"{readme}:{at + 1}: {lines[at].strip()} {why}")

    for i, line in enumerate(lines):
        mark, words = FENCE.match(line), line.strip()
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        start = None if fence else START.fullmatch(words)
        if start and open_at is not None:
            raise refused(i, f"inside the block of line {open_at + 1}: end that with {END}")
        if start:
            open_at, path = i, start[1]
        elif words == END and not fence:
            if open_at is None:
                raise refused(i, "has no <!-- benchmarks: PATH --> before it: add that")
            found.append(Block(path, open_at + 1, i))
            open_at = None
    if open_at is not None:
        raise refused(open_at, f"is never ended: put {END} behind its table")
    return found


def _root(readme: Path) -> Path:
    """The folder of the repository that `readme` is in; outside of one, its own folder."""
    folder = readme.resolve().parent
    return next((f for f in (folder, *folder.parents) if (f / ".git").exists()), folder)
