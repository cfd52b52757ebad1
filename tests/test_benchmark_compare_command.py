"""python -m benchmarks compare OLD NEW: what it says of two files, and its exit status."""

import json
import math

import pytest

from benchmark_drawn import OURS, QUIET, RIVAL, drawn, regressions
from benchmark_results import results, untimed
from benchmarks.compare import main
from benchmarks.regression.changes import compared
from benchmarks.results import row_of, write


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
