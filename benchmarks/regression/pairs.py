"""What two results files have in common: the programs of the same cases, and the times each pair is judged by."""

from dataclasses import dataclass

from ..reporting.phrases import brief, digits, duration
from ..results import Case, Results, Row, row_of


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
        return "; ".join(f"{n} file: {brief(c['disturbed'])}" for n, c in said if c["disturbed"])


@dataclass(frozen=True)
class Alone:
    """A program, or where `row` is None a whole case, that only one of the files has."""

    in_new: bool
    case: Case
    row: Row | None


def matched(old: Results, new: Results) -> tuple[list[Pair], list[Alone]]:
    """By the names of cases (of a layer) and programs. ValueError where a case's name is there twice."""
    before, after = _by_name(old), _by_name(new)
    pairs: list[Pair] = []
    alone: list[Alone] = []
    for key in dict.fromkeys([*before, *after]):
        if key not in before or key not in after:
            alone.append(Alone(key in after, after.get(key) or before[key], None))
            continue
        cases = before[key], after[key]
        rows = [{row["program"]: row for row in case["rows"]} for case in cases]
        for program in dict.fromkeys([*rows[0], *rows[1]]):
            found = [r.get(program) for r in rows]
            if all(found):
                pairs.append(Pair(*cases, *found))
            else:
                alone.append(Alone(bool(found[1]), cases[bool(found[1])], found[0] or found[1]))
    return pairs, alone


def _by_name(results: Results) -> dict[tuple[str, str], Case]:
    found: dict[tuple[str, str], Case] = {}
    for case in results["cases"]:
        key = (case["layer"], case["name"])
        if key in found:
            raise ValueError(
                f"two cases of layer {key[0]!r} are named {key[1]!r}: each needs a name of its own"
            )
        found[key] = case
    return found


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


@dataclass(frozen=True)
class Quantity:
    """A time in both files, and all the times that it is made of."""

    name: str
    old: float
    new: float
    samples: tuple[list[float], ...]
    words: str


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
