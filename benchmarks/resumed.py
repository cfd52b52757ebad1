"""Going on with a results file: what it lacks or was disturbed is measured, the other cases stay as they are."""

from pathlib import Path

from .case import Case
from .results import Results, read

# what has to be alike for cases to stand in one file
SAME = ("machine", "method")
SAME_RUN = ("suite", "device", "front")


def gone_on(path: Path, begun: Results) -> Results:
    """The file at `path` with this run noted in it, or `begun` where there is none.

    OSError, or ValueError: it is no results file, or another machine, other versions or settings have made it.
    """
    if not path.exists():
        return begun
    old = read(path)
    pairs = [(key, old[key], begun[key]) for key in SAME]
    pairs.append(("run", *({k: r["run"].get(k) for k in SAME_RUN} for r in (old, begun))))
    for name, before, now in pairs:
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"--resume: {path} has {name} {key} {before.get(key)!r}, this run {now.get(key)!r}; "
                    "without --resume it is made anew"
                )
    noted = {"at": begun["run"]["at"], "commit": begun["run"]["commit"]}
    old["run"].setdefault("resumed", []).append(noted)
    return old


def left(chosen: list[Case], results: Results) -> list[Case]:
    """Those to be measured."""
    good = {case["name"] for case in results["cases"] if not case["disturbed"]}
    return [case for case in chosen if case.name not in good]


def put(results: Results, found: dict, chosen: list[Case]) -> None:
    """In the place of what the file has by that name, in the order of `chosen`; others behind."""
    cases = {case["name"]: case for case in results["cases"]} | {found["name"]: found}
    order = [case.name for case in chosen if case.name in cases]
    results["cases"][:] = [cases[n] for n in dict.fromkeys([*order, *cases])]
