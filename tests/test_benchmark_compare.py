"""benchmarks.compare: regressions are named, noise is not, on files made up with known medians and spreads."""

import copy
import json
import math
import random
import statistics

import pytest

from benchmark_results import results, untimed
from benchmarks.compare import main
from benchmarks.regression import medians
from benchmarks.regression.changes import compared
from benchmarks.regression.pairs import differences
from benchmarks.results import row_of, timed, write

SIGMA = 1 / 1.349  # of normal times whose middle half is 1 wide
OURS, RIVAL, BASELINE = "vit-fast", "OpenVINO", "transformers, eager"
QUIET = 2  # cases[1] is the disturbed one


def drawn(seed, spread=0.01, n=20, slower=(), outliers=0.1):
    """The same medians for every seed; `slower`: (case, program, factor). A tenth of the calls takes up to 20% more."""
    draw, found = random.Random(seed), results()
    for i, case in enumerate(found["cases"]):
        for row in timed(case):
            factor = math.prod(f for c, p, f in slower if (c, p) == (i, row["program"]))
            sample(row, row["p50_ms"] * factor, spread, n, draw, outliers)
    return found


def sample(row, ms, spread, n, draw, outliers=0.0):
    times = [
        ms * math.exp(draw.gauss(0, spread * SIGMA)) * (1 + draw.uniform(0, 0.2) * (draw.random() < outliers))
        for _ in range(n)
    ]  # fmt: skip
    row.update(samples_ms=times, p50_ms=statistics.median(times), least_ms=min(times))


def of_kind(kind, found):
    return [c for c in found if c.kind == kind]


def regressions(found):
    return [(c.case, c.program) for c in found if c.regression]


@pytest.fixture
def files(tmp_path):
    def written(*all_results):
        paths = [tmp_path / f"{i}.json" for i in range(len(all_results))]
        for path, r in zip(paths, all_results):
            write(path, r)
        return [str(path) for path in paths]

    return written


def test_identical_files_give_nothing(files, capsys):
    assert compared(results(), results()) == []
    assert main(files(results(), results())) == 0
    assert "0 regressions of ours" in capsys.readouterr().out


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


def test_a_rival_that_got_slower_is_named_and_no_regression(files):
    old, new = drawn(0), drawn(1, slower=[(4, RIVAL, 1.2)])
    (found,) = compared(old, new)
    assert (found.kind, found.program, found.regression) == ("slower", RIVAL, False)
    assert main([*files(old, new), "--fail"]) == 0


def test_a_slower_machine_is_no_regression(files, capsys):
    """All of a case takes a fifth more time by the clock: the same ratios. On another machine nobody looks at it."""
    programs = [row["program"] for row in results()["cases"][QUIET]["rows"]]
    old, new = drawn(0), drawn(1, slower=[(QUIET, p, 1.2) for p in programs])
    assert {c.kind for c in compared(old, new)} == {"clock"}
    assert main([*files(old, new), "--fail"]) == 0
    assert f"{OURS} +2" in capsys.readouterr().out
    new["machine"]["device"] = "Another"
    assert compared(old, new) == []
    main(files(old, new))
    assert "device A Processor -> Another" in capsys.readouterr().out


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


def test_a_disturbed_case_is_reported_apart(files, capsys):
    old, new = drawn(0), drawn(1, slower=[(1, OURS, 1.3)])
    (found,) = compared(old, new)
    assert (found.kind, found.regression) == ("disturbed", False)
    assert "; old file: other processes took 14%" in found.why and "; new file: " in found.why
    assert main([*files(old, new), "--fail"]) == 0
    assert "not judged" in capsys.readouterr().out


def test_files_that_are_disturbed_throughout_guard_nothing(files, capsys):
    old, new = drawn(0), drawn(1)
    for case in new["cases"]:
        case["disturbed"] = "hot"
    assert main([*files(old, new), "--fail"]) == 2
    assert "0 times judged" in capsys.readouterr().out


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


@pytest.mark.parametrize("status", ["inaccurate", "wrong", "failed", "skipped"])
def test_ours_without_a_result_is_a_regression(status, files):
    old, new = results(), results()
    row = row_of(new["cases"][QUIET], OURS)
    row.update(untimed(OURS, status, "the reason\nof it"))
    (found,) = compared(old, new)
    assert (found.kind, found.why) == ("lost", f"ok -> {status}: the reason of it")
    assert main([*files(old, new), "--fail"]) == 1
    assert main(files(old, new)) == 0
    (back,) = compared(new, old)
    assert (back.kind, back.regression) == ("gained", False)


def test_an_error_beyond_what_is_allowed_is_a_regression(files):
    old, new = results(), results()
    row_of(new["cases"][QUIET], OURS)["accuracy"]["row_error"] = 5e-6  # of 4e-6
    (found,) = compared(old, new)
    assert (found.kind, found.new, found.regression) == (
        "less accurate", pytest.approx(1.25), True,
    )  # fmt: skip
    assert main([*files(old, new), "--fail"]) == 1
    row_of(new["cases"][QUIET], OURS)["accuracy"]["row_error"] = math.nan
    assert regressions(compared(old, new))
    row_of(new["cases"][QUIET], OURS)["accuracy"]["row_error"] = 3.9e-6
    assert compared(old, new) == []


def test_what_vanished_and_what_is_new_is_named(files, capsys):
    old, new = results(), results()
    del new["cases"][0]["rows"][5]
    gone = new["cases"].pop(7)["name"]
    found = compared(old, new)
    assert [(c.kind, c.case, c.program, c.ours) for c in found] == [
        ("vanished", old["cases"][0]["name"], OURS, True),
        ("vanished", gone, "", True),
    ]
    assert {c.kind for c in compared(new, old)} == {"new"}
    main(files(old, new))
    out = capsys.readouterr().out
    assert gone in out and f"{OURS}: ok there" in out


def test_exit_statuses(files, tmp_path, capsys):
    slow = [(QUIET, OURS, 1.3)]
    old, new = files(drawn(0), drawn(1, slower=slow))
    assert main([old, new]) == 0
    assert main([old, new, "--fail"]) == 1
    assert main([new, old, "--fail"]) == 0
    nothing = results()
    nothing["cases"] = []
    write(tmp_path / "nothing.json", nothing)
    assert main([old, str(tmp_path / "nothing.json")]) == 0
    assert main([old, str(tmp_path / "nothing.json"), "--fail"]) == 2
    assert "no time of ours in common" in capsys.readouterr().err


def test_files_that_are_none(files, tmp_path, capsys):
    (good,) = files(results())
    other = tmp_path / "other.json"
    for content, said in (
        ("{}", "is not a results file of this suite"),
        ("nonsense", "is not JSON"),
        (json.dumps({**results(), "format": 2}), "has format 2, expected 1"),
        (None, "No such file"),
    ):
        other.unlink() if content is None else other.write_text(content)
        for paths in ([good, str(other)], [str(other), good]):
            with pytest.raises(SystemExit) as stopped:
                main(paths)
            assert stopped.value.code == 2
            assert said in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([good])
    assert stopped.value.code == 2


def test_names_that_are_there_twice(files, capsys):
    twice = results()
    twice["cases"].append(twice["cases"][0])
    with pytest.raises(SystemExit) as stopped:
        main(files(results(), twice))
    assert stopped.value.code == 2
    assert "two cases of layer 'model'" in capsys.readouterr().err


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
