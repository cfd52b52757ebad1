"""What got slower, faster or less accurate between two results files.

Cases and programs are matched by name. What is judged is a program's p50 over that of its case's baseline in the same
file: both were measured in one run, and the speed of the machine on that day is in both. Where neither file has the
baseline's time, and the machines are the same, p50 itself is judged. A change counts where it is beyond the spread of
the times that it is made of, and beyond 2%; benchmarks/medians.py has the maths.

Between files of one machine the clock is looked at too, and named where it tells something else than the ratio: with
other work on the machine it does so by chance, so nothing fails by it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from . import medians
from .results import Case, Results, Row, row_of
from .words import digits, duration, percent, plain, share

KINDS = {
    "slower": "Slower, beyond the spread",
    "less accurate": "Less accurate",
    "lost": "No longer accurate and timed",
    "faster": "Faster, beyond the spread",
    "gained": "Accurate and timed now",
    "status": "Still without a result, for another reason",
    "vanished": "In the old file alone",
    "new": "In the new file alone",
    "disturbed": "Beyond the spread, but in a disturbed case: not judged",
    "clock": "By the clock alone, without the ratio to the baseline, or in that itself: not judged",
    "unknown": "Could not be judged",
}


@dataclass(frozen=True)
class Change:
    kind: str  # one of KINDS
    case: str
    program: str  # "" where the case itself vanished or is new
    ours: bool
    why: str
    quantity: str = ""  # "ratio" or "p50_ms" of a time, "share" of an error
    old: float | None = None  # program over baseline, milliseconds, or error over allowed
    new: float | None = None
    beyond: float | None = None  # a time's change has to exceed it: 0.02 is 2%

    @property
    def change(self) -> float | None:
        """0.1: it takes 10% longer."""
        return self.new / self.old - 1 if self.old and self.new is not None else None

    @property
    def regression(self) -> bool:
        return self.ours and self.kind in ("slower", "less accurate", "lost")


@dataclass(frozen=True)
class Pair:
    """One program in one case of both files."""

    old_case: Case
    new_case: Case
    old: Row
    new: Row

    @property
    def is_baseline(self) -> bool:
        return self.new["program"] in (self.old_case["baseline"], self.new_case["baseline"])

    @property
    def disturbed(self) -> str:
        said = (("old", self.old_case), ("new", self.new_case))
        return "; ".join(f"{n}: {plain(c['disturbed'])}" for n, c in said if c["disturbed"])


def compared(old: Results, new: Results) -> list[Change]:
    """What differs beyond the spread, in the order of `old`, then what is new. Of like files: nothing."""
    pairs, changes = matched(old, new)
    same = not differences(old, new)
    changes += [change for pair in pairs for change in _status(pair)]
    times = [(pair, quantities(pair, same)) for pair in pairs if timed_in_both(pair)]
    looked_at = sum(len(found) for _, found in times)
    in_turn = all(r["method"].get("order") == "in turn" for r in (old, new))
    for pair, found in times:
        changes += _judged(pair, found, looked_at, in_turn)
    return changes


def matched(old: Results, new: Results) -> tuple[list[Pair], list[Change]]:
    """The programs that both files have, and what only one of them has."""
    pairs: list[Pair] = []
    changes: list[Change] = []
    before, after = ({case["name"]: case for case in r["cases"]} for r in (old, new))
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            kind, case = ("vanished", before[name]) if name in before else ("new", after[name])
            ours = any(row["ours"] for row in case["rows"])
            changes.append(Change(kind, name, "", ours, f"a case of {len(case['rows'])} programs"))
            continue
        rows_before, rows_after = (
            {row["program"]: row for row in case["rows"]} for case in (before[name], after[name])
        )
        for program in dict.fromkeys([*rows_before, *rows_after]):
            if program in rows_before and program in rows_after:
                pair = Pair(before[name], after[name], rows_before[program], rows_after[program])
                pairs.append(pair)
                continue
            kind = "vanished" if program in rows_before else "new"
            row = rows_before.get(program) or rows_after[program]
            changes.append(Change(kind, name, program, row["ours"], f"{row['status']} there"))
    return pairs, changes


def differences(old: Results, new: Results) -> list[str]:
    """In what the machines' cards differ; not in the version of vit-fast, which is what is compared."""
    cards = [
        {**r["machine"], **(r["machine"].get("rivals") or {}), "rivals": None} for r in (old, new)
    ]
    keys = dict.fromkeys([*cards[0], *cards[1]])
    return [
        f"{key} {cards[0].get(key)} -> {cards[1].get(key)}"
        for key in keys
        if key != "vit_fast" and cards[0].get(key) != cards[1].get(key)
    ]


def _change(kind: str, pair: Pair, why: str, **numbers: object) -> Change:
    row = pair.new
    return Change(kind, pair.new_case["name"], row["program"], row["ours"], plain(why), **numbers)


def _status(pair: Pair) -> Iterator[Change]:
    old, new = pair.old, pair.new
    if old["status"] != new["status"]:
        kind = "lost" if old["status"] == "ok" else "gained" if new["status"] == "ok" else "status"
        why = plain(new["why"] if kind != "gained" else old["why"]) or "no reason given"
        yield _change(kind, pair, f"{old['status']} -> {new['status']}: {why}")
    elif new["status"] == "ok":
        before, after = share(old), share(new)
        # a NaN is no error within what is allowed
        if after is not None and not after <= 1 and (before is None or before <= 1):
            why = f"{digits(before)} -> {digits(after)} of the error that is allowed"
            yield _change("less accurate", pair, why, quantity="share", old=before, new=after)


@dataclass(frozen=True)
class Quantity:
    """A time in both files, and all the times that it is made of."""

    name: str
    old: float
    new: float
    samples: tuple[list[float], ...]
    words: str


def judged(old: Results, new: Results) -> list[Pair]:
    """Those whose time is judged: it has a measure, and the case was not disturbed."""
    same = not differences(old, new)
    return [
        pair
        for pair in matched(old, new)[0]
        if timed_in_both(pair)
        and quantities(pair, same)
        and not pair.is_baseline
        and not pair.disturbed
    ]


def timed_in_both(pair: Pair) -> bool:
    return all(
        (row := row_of(case, pair.new["program"])) is not None and bool(row["p50_ms"])
        for case in (pair.old_case, pair.new_case)
    )


def quantities(pair: Pair, same: bool) -> list[Quantity]:
    """What can be judged, the ratio first. `same`: the machines are, and the clock may be looked at."""
    baseline = _baseline(pair)
    found = [_ratio(pair, baseline)] if baseline else []
    if same:
        old, new = pair.old["p50_ms"], pair.new["p50_ms"]
        samples = (pair.old["samples_ms"], pair.new["samples_ms"])
        words = f"p50 {duration(old)} -> {duration(new)}"
        found.append(Quantity("p50_ms", old, new, samples, words))
    return found


def _baseline(pair: Pair) -> str | None:
    """The baseline of either case, the new one's first, where both have its times."""
    for name in (pair.new_case["baseline"], pair.old_case["baseline"]):
        rows = [row_of(case, name) for case in (pair.old_case, pair.new_case)]
        if all(row and row["p50_ms"] for row in rows) and name != pair.new["program"]:
            return name
    return None


def _ratio(pair: Pair, baseline: str) -> Quantity:
    rows = (pair.old, row_of(pair.old_case, baseline), pair.new, row_of(pair.new_case, baseline))
    old, new = (a["p50_ms"] / b["p50_ms"] for a, b in (rows[:2], rows[2:]))
    words = f"{digits(1 / old)}x -> {digits(1 / new)}x as fast as {baseline}"
    return Quantity("ratio", old, new, tuple(r["samples_ms"] for r in rows), words)


def _judged(pair: Pair, found: list[Quantity], looked_at: int, in_turn: bool) -> Iterator[Change]:
    """At most one change: by the first quantity; else, by the clock, where that alone moved."""
    if not found and not pair.is_baseline:
        yield _change("unknown", pair, "no baseline is timed in both, and the machines differ")
    for i, q in enumerate(found):
        moved = math.log(q.new / q.old)
        limit = medians.bound(q.samples, looked_at)
        if limit is not None and (q.name == "p50_ms" or not in_turn):
            # what the machine drifted by is in times that were not taken in the same rounds
            limit += sum(math.log1p(abs(c["drift"] or 0)) for c in (pair.old_case, pair.new_case))
        if abs(moved) <= (math.log1p(medians.FLOOR) if limit is None else limit):
            continue
        yield _named(pair, found, i, moved, limit)
        return


def _named(pair: Pair, found: list[Quantity], i: int, moved: float, limit: float | None) -> Change:
    q, disturbed = found[i], pair.disturbed
    kind = "slower" if moved > 0 else "faster"
    if limit is None:
        spread = f"fewer than {medians.LEAST} times"
    else:
        spread = f"spread {percent(math.expm1(limit))}"
    words = "; ".join(each.words for each in found)
    side = f"{percent(abs(q.new / q.old - 1))} {'more' if moved > 0 else 'less'} time ({spread})"
    why = f"{side}: {words}" + (f"; {disturbed}" if disturbed else "")
    if disturbed:
        kind = "disturbed"
    elif limit is None:
        kind = "unknown"
    elif i or pair.is_baseline:
        kind = "clock"
    beyond = None if limit is None else math.expm1(limit)
    return _change(kind, pair, why, quantity=q.name, old=q.old, new=q.new, beyond=beyond)
