"""benchmarks.compare: regressions are named, noise is not, on files made up with known medians and spreads."""

import copy
import math

import pytest

from benchmark_drawn import BASELINE, OURS, QUIET, drawn, of_kind, regressions
from benchmark_results import results, untimed
from benchmarks.regression import medians
from benchmarks.regression.changes import compared
from benchmarks.regression.pairs import differences
from benchmarks.results import row_of, timed


@pytest.mark.parametrize("n, spread", [(20, 0.01), (20, 0.08), (5, 0.02)])
def test_like_files_seldom_give_anything(n, spread):
    """Of 1000 pairs each, 1, 20 and 6 named anything, where 20 may: 1% ours, 1% others. Here of 60."""
    alarms = sum(
        bool(compared(drawn(2 * i, spread, n), drawn(2 * i + 1, spread, n))) for i in range(60)
    )
    assert alarms <= 2


def test_a_tenth_slower_is_found():
    """With 3% spread and outliers, each time; and nothing but it."""
    for seed in range(0, 80, 2):
        change = (QUIET, OURS, 1.1)
        old, new = drawn(seed, 0.03), drawn(seed + 1, 0.03, slower=[change])
        (found,) = of_kind("slower", compared(old, new))
        assert (found.case, found.program, found.quantity) == (old["cases"][QUIET]["name"], OURS, "ratio")  # fmt: skip
        assert found.regression and found.change == pytest.approx(0.1, abs=0.04)
        assert found.change > found.beyond > medians.FLOOR


def test_a_twentieth_slower_is_found_where_times_spread_by_a_hundredth():
    for seed in range(0, 40, 2):
        found = compared(drawn(seed), drawn(seed + 1, slower=[(QUIET, OURS, 1.05)]))
        assert regressions(found) == [(results()["cases"][QUIET]["name"], OURS)]


def test_a_twentieth_is_noise_where_times_spread_by_a_tenth():
    for seed in range(0, 40, 2):
        found = compared(drawn(seed, 0.1), drawn(seed + 1, 0.1, slower=[(QUIET, OURS, 1.05)]))
        assert regressions(found) == []


def test_changes_under_the_floor_are_not_named():
    """Of times without any spread."""
    old = drawn(0, 0.0, outliers=0)
    for factor, kinds in ((1.019, []), (1.021, ["slower"]), (1 / 1.019, []), (1 / 1.021, ["faster"])):  # fmt: skip
        new = drawn(0, 0.0, outliers=0, slower=[(QUIET, OURS, factor)])
        new["machine"]["torch"] = "3"  # the ratio alone
        assert [c.kind for c in compared(old, new)] == kinds


def test_what_got_faster_is_no_regression():
    (found,) = compared(drawn(0), drawn(1, slower=[(QUIET, OURS, 0.9)]))
    assert (found.kind, found.regression) == ("faster", False)
    assert "less time" in found.why and found.program == OURS


def test_our_version_does_not_make_another_machine():
    old, new = results(), results()
    new["machine"]["vit_fast"] = "0.2.0"
    assert differences(old, new) == []
    new["machine"]["rivals"]["openvino"] = "2027.1"
    assert differences(old, new) == ["openvino 2026.4.1 -> 2027.1"]


def test_without_the_baseline_the_clock_judges_on_one_machine():
    old, new = drawn(0), drawn(1, slower=[(QUIET, OURS, 1.1)])
    new["cases"][QUIET]["rows"][0] = untimed(BASELINE, "failed", "out of memory")
    (found,) = of_kind("slower", compared(old, new))
    assert (found.program, found.quantity, found.regression) == (OURS, "p50_ms", True)
    assert found.old == row_of(old["cases"][QUIET], OURS)["p50_ms"]
    new["machine"]["threads"] = 64
    unknown = of_kind("unknown", compared(old, new))
    assert OURS in [c.program for c in unknown] and not any(c.regression for c in unknown)


def test_without_turns_drift_widens_the_spread():
    old, new = drawn(0), drawn(1, slower=[(QUIET, OURS, 1.08)])
    new["machine"]["torch"] = "3"
    assert regressions(compared(old, new))
    new["cases"][QUIET]["drift"] = 0.1
    assert regressions(compared(old, new))
    new["method"]["order"] = "one after another"
    assert compared(old, new) == []


def test_too_few_times_are_not_judged():
    old, new = drawn(0, n=2), drawn(1, n=2, slower=[(QUIET, OURS, 1.5)])
    found = [c for c in compared(old, new) if (c.case, c.program) == (old["cases"][QUIET]["name"], OURS)]  # fmt: skip
    assert [c.kind for c in found] == ["unknown"]
    assert "fewer than 3 times" in found[0].why and not found[0].regression


def test_many_times_slower_is_not_said_in_percent():
    slow = [(QUIET, OURS, 8.0), (4, OURS, 1 / 8)]
    found = {c.kind: c.why for c in compared(drawn(0, 0.001), drawn(1, 0.001, slower=slow))}
    assert found["slower"].startswith("8.0") and " times as long" in found["slower"]
    assert found["faster"].startswith("0.12") and " times as long" in found["faster"]


def test_what_is_not_judged_makes_no_guard_blunt():
    """Disturbed cases and rivals are not among the changes that a regression of ours is one of."""
    old, new = drawn(0, 0.03), drawn(1, 0.03, slower=[(QUIET, OURS, 1.3)])
    (among_many,) = of_kind("slower", compared(old, new))
    for i, case in enumerate(new["cases"]):
        case["disturbed"] = "hot" if i != QUIET else ""
    (alone,) = of_kind("slower", compared(old, new))
    pair = [row_of(r["cases"][QUIET], p)["samples_ms"] for r in (old, new) for p in (OURS, BASELINE)]  # fmt: skip
    assert math.log1p(alone.beyond) == pytest.approx(medians.bound(pair, 1))
    ours = sum(row["ours"] for c in old["cases"] for row in timed(c) if not c["disturbed"])
    assert math.log1p(among_many.beyond) == pytest.approx(medians.bound(pair, ours))


def test_numbers_that_are_missing():
    old, new = results(), results()
    for row in timed(new["cases"][QUIET]):
        row.update(p50_ms=None, samples_ms=[], accuracy=None)
    new["cases"][QUIET]["drift"] = None
    assert compared(old, new) == compared(new, old) == []


def test_files_are_not_changed():
    old, new = drawn(0), drawn(1)
    before = copy.deepcopy((old, new))
    compared(old, new)
    assert (old, new) == before
