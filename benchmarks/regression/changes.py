"""What got slower, faster or less accurate between two results files.

What is judged is a program's p50 over that of its case's baseline in the same file: both were measured in one run, and
the speed of the machine on that day is in both. Where the baseline has no time in one of the files, and the machines
are the same, p50 itself is judged. A change counts where it is beyond the spread of the times that it is made of, and
beyond 2%; benchmarks/medians.py has the maths.

Between files of one machine the clock is looked at too, and named where it tells something else than the ratio: with
other work on the machine it does so by chance, so nothing fails by it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..reporting.phrases import digits, plain
from ..reporting.words import accuracy_share, percent
from ..results import Results
from . import medians
from .pairs import Alone, Pair, Quantity, differences, matched, quantities, timed_in_both

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


def compared(old: Results, new: Results) -> list[Change]:
    """What differs beyond the spread, in the order of `old`, then what is new. Of like files: nothing.

    ValueError where a file has two cases of one name.
    """
    pairs, alone = matched(old, new)
    same = not differences(old, new)
    changes = [_alone(found) for found in alone]
    changes += [change for pair in pairs for change in _status(pair)]
    times = [(pair, quantities(pair, same)) for pair in pairs if timed_in_both(pair)]
    # those that may fail have alarms of their own: more rivals do not make a guard of ours blunt
    guarded = [_guarded(pair, i) for pair, found in times for i in range(len(found))]
    looked_at = {kind: guarded.count(kind) for kind in (True, False)}
    in_turn = all(r["method"].get("order") == "in turn" for r in (old, new))
    for pair, found in times:
        changes += _by_time(pair, found, looked_at, in_turn)
    return changes


def _guarded(pair: Pair, i: int) -> bool:
    """Whether the i-th quantity of `pair` may be a regression of ours."""
    return pair.new["ours"] and i == 0 and not pair.is_baseline and not pair.disturbed


def _alone(found: Alone) -> Change:
    kind, name, rows = "new" if found.in_new else "vanished", found.case["name"], found.case["rows"]
    if found.row is None:
        return Change(kind, name, "", any(r["ours"] for r in rows), f"a case of {len(rows)} programs")  # fmt: skip
    return Change(kind, name, found.row["program"], found.row["ours"], f"{found.row['status']} there")  # fmt: skip


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
        before, after = accuracy_share(old), accuracy_share(new)
        # a NaN is no error within what is allowed
        if after is not None and not after <= 1 and (before is None or before <= 1):
            why = f"{digits(before)} -> {digits(after)} of the error that is allowed"
            yield _change("less accurate", pair, why, quantity="share", old=before, new=after)


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


def _by_time(
    pair: Pair, found: list[Quantity], looked_at: dict[bool, int], in_turn: bool
) -> Iterator[Change]:
    """At most one change: by the first quantity; else, by the clock, where that alone moved."""
    if not found and not pair.is_baseline:
        yield _change("unknown", pair, "no baseline is timed in both, and the machines differ")
    for i, q in enumerate(found):
        moved = math.log(q.new / q.old)
        limit = medians.bound(q.samples, looked_at[_guarded(pair, i)])
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
    times = q.new / q.old
    if 0.5 < times < 2:
        said = f"{percent(abs(times - 1))} {'more' if moved > 0 else 'less'} time"
    else:
        said = f"{digits(times)} times as long"
    why = f"{said} ({spread}): {words}" + (f"; {disturbed}" if disturbed else "")
    if disturbed:
        kind = "disturbed"
    elif limit is None:
        kind = "unknown"
    elif i or pair.is_baseline:
        kind = "clock"
    beyond = None if limit is None else math.expm1(limit)
    return _change(kind, pair, why, quantity=q.name, old=q.old, new=q.new, beyond=beyond)
