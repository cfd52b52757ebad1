"""Numbers and rows of a results file in words, as the pictures and the page say them."""

import math

from ..results import Case, Results, Row, commits

STATUS = {
    "ok": "accurate",
    "inaccurate": "beyond the accuracy rule: timed, not ranked",
    "wrong": "WRONG: a program of ours beyond the accuracy rule, so not timed",
    "skipped": "skipped: cannot run here",
    "failed": "failed with an error",
}


def number(value: float | None, digits: int = 4) -> str:
    """`digits` significant ones, never in powers of ten: 0.01234, 12.34, 12,340; whole numbers as they are."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(places, 0)}f}"


def percent(value: float | None, places: int = 1) -> str:
    return "-" if value is None else f"{value:.{places}%}"


def times(value: float | None) -> str:
    """A speed-up, with two places."""
    return "-" if value is None else f"{value:.2f}x"


def accuracy_share(row: Row) -> float | None:
    """Error over what the rule allows, the worse of its two measures; above 1 it is beyond the rule. None: not held."""
    found = row["accuracy"]
    if not found:
        return None
    pairs = [("error", "allowed"), ("row_error", "row_allowed")]
    given = [
        (found[e], found[a])
        for e, a in pairs
        if found.get(e) is not None and found.get(a) is not None
    ]
    shares = [e / a if a else (math.inf if e else 0.0) for e, a in given]
    if any(map(math.isnan, shares)):
        return math.nan
    return max(shares, default=None)


def output(case: Case) -> str:
    """What the case computes: "tokens", "fc1", "fc1 (cold)" where the caches are."""
    return f"{case['what']} (cold)" if case["cache"] == "cold" else case["what"]


def short(case: Case) -> str:
    """ "ViT-B/16-224 tokens fp32 batch 8": the case without what the layer says."""
    return f"{case['title']} {output(case)} {case['dtype']} batch {case['batch']}"


def setting(results: Results) -> str:
    """The machine and the run in one line."""
    machine, run = results["machine"], results["run"]
    threads = machine.get("threads")
    parts = [
        str(machine.get("device") or "unknown device"),
        f"{threads} threads" if threads else "",
        f"torch {machine['torch']}" if machine.get("torch") else "",
        f"vit-fast {machine['vit_fast']}" if machine.get("vit_fast") else "",
        f"commit {commits(results, 10)}" if commits(results) else "",
        str(run.get("at") or "")[:10],
    ]
    return ", ".join(part for part in parts if part)


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
