"""Who is faster, as the page says it: at equal accuracy, by what ranks a case, with every loss named."""

from typing import Any

import pytest

import benchmark_variants as variants
from benchmark_results import results, untimed
from benchmarks.reporting.verdict import judge, losses, sentence, spans
from benchmarks.results import ranked
from page_reader import section, shown


def test_the_verdict_counts():
    found = results()
    cells = [judge(c) for c in found["cases"] if c["layer"] == "model"]
    first = [ranked(c)[0]["ours"] for c in found["cases"] if c["layer"] == "model" and not c["disturbed"]]  # fmt: skip
    assert (sum(c.outcome == "won" for c in cells), len(first)) == (sum(first), 11)
    said = f"fastest accurate program in {sum(first)} of 11 cells, against 5 other programs"
    assert said in sentence(found)
    assert "Not counted: 1 disturbed." in sentence(found)
    verdict = section(shown(found), "verdict").text
    assert sentence(found) in verdict
    lost = losses(cells)
    assert len(lost) == 11 - sum(first) > 0
    for line in [*lost, *spans(found)]:
        assert line in verdict


def one(ours: float, rival: float, spread: float = 0.0, batch: int = 1) -> dict[str, Any]:
    """A case with these p90 latencies and rates."""
    found = variants.models(["M"], {"fp32": 1.0}, (batch,), {"rival": 1.0, "vit-fast": 1.0})[0]
    for row, ms in zip(found["rows"], (rival, ours)):
        row.update(p50_ms=ms, p90_ms=ms, images_s=1e3 * batch / ms, spread=spread)
    return found


def test_a_cell_is_judged():
    won, lost = judge(one(ours=8.0, rival=10.0)), judge(one(ours=10.0, rival=8.0))
    assert (won.outcome, won.ratio, won.close) == ("won", pytest.approx(1.25), False)
    assert (lost.outcome, lost.ratio) == ("lost", pytest.approx(0.8))
    said = "rival reaches 8.000 ms (p90), vit-fast 10.00 ms (p90): 20.0% slower."
    assert losses([won, lost]) == [f"M tokens fp32 batch 1: {said}"]
    assert judge(one(ours=10.0, rival=10.0)).outcome == "lost"
    assert judge(one(ours=9.9, rival=10.0, spread=0.03)).close
    assert judge({**one(8.0, 10.0), "disturbed": "noise"}).outcome == "disturbed"


def test_one_image_is_judged_by_p90_and_many_by_throughput():
    single, many = one(8.0, 10.0), one(8.0, 10.0, batch=8)
    for case in (single, many):
        case["rows"][1].update(p90_ms=20.0)
    assert (judge(single).outcome, judge(many).outcome) == ("lost", "won")


@pytest.mark.parametrize("status", ["wrong", "failed", "skipped"])
def test_no_accurate_result_of_ours_is_a_loss(status):
    case = one(8.0, 10.0)
    case["rows"][1] = untimed("vit-fast", status, "because <of> this")
    assert judge({**case, "disturbed": "noise"}).outcome == "lost"
    found = {**results(), "cases": [case]}
    assert "in 0 of 1 cell, against 1 other program, and loses 1." in sentence(found)
    verdict = section(shown(found), "verdict").text
    assert f"no accurate result of vit-fast (vit-fast is {status}: because <of> this)" in verdict
    assert "LOST: no accurate result of ours" in verdict


def test_an_inaccurate_rival_is_no_rival():
    case = one(10.0, 8.0)
    case["rows"][0].update(status="inaccurate", why="far off")
    assert judge(case).outcome == "uncontested"
    found = {**results(), "cases": [case]}
    assert sentence(found).startswith("No cell of this file")
    assert "1 without an accurate rival" in sentence(found)
    case["rows"] = case["rows"][:1]
    assert judge(case).outcome == "not run"
