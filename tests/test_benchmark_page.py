"""The page of a results file: its numbers are the file's, what is missing is said, and it needs nothing else."""

import base64
import copy
import re
from pathlib import Path
from typing import Any

import pytest

import benchmark_variants as variants
from benchmark_results import results
from benchmarks.plots import Picture
from benchmarks.reporting import page
from benchmarks.reporting.columns import COLUMNS, LAYERS
from benchmarks.results import ranked, timed
from page_reader import Element, section, shown

EVIL = "<script>alert('x')</script> & \"quoted\" <img src=http://evil>"
LAYER_OF = {
    "whole-models": "model",
    "operations": "operation",
    "what-each-step-gains": "ablation",
    "end-to-end": "end to end",
    "cold-start": "cold start",
}
NUMBERS = {
    "p50 ms": "p50_ms", "p90 ms": "p90_ms", "p99 ms": "p99_ms", "images/s": "images_s", "speed-up": "speed_up",
    "TFLOP/s": "tflops", "GB/s": "gbps", "build s": "build_s", "first call s": "first_s", "held MiB": "held_mib",
    "peak MiB": "peak_mib", "launches": "launches",
}  # fmt: skip
PERCENTS = {"spread": "spread", "MFU": "mfu"}


def lines(tree: Element, anchor: str) -> list[list[Element]]:
    """The rows of a section's cases, without their headings."""
    body = [b for b in section(tree, anchor).all("tbody")]
    return [[row for row in b.all("tr") if "case" not in row.classes] for b in body]


def near(text: str, value: float) -> bool:
    """As the page says a number: to within one of its last places."""
    return float(text.rstrip("x%").replace(",", "")) == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize("anchor, layer", LAYER_OF.items())
def test_every_number_is_the_files(anchor, layer):
    found = results()
    cases = [c for c in found["cases"] if c["layer"] == layer]
    heads = [th.text for th in next(section(shown(found), anchor).all("thead")).all("th")]
    tables = lines(shown(found), anchor)
    assert [len(rows) for rows in tables] == [len(c["rows"]) for c in cases]
    checked = 0
    for case, rows in zip(cases, tables):
        for row, line in zip(case["rows"], rows):
            cells = [c.text for c in line.children]
            assert cells[0].startswith(row["program"])
            if row not in list(timed(case)):
                assert len(cells) == 2 and row["why"] in cells[1]
                continue
            assert len(cells) == len(heads)
            for head, cell in zip(heads, cells):
                # the parts of a cold start have a column each, and a test of their own
                if head.removesuffix(" s") in (row["parts"] or {}):
                    continue
                key = NUMBERS.get(head) or PERCENTS.get(head)
                value = row.get(key) if key else None
                if key and value is None:
                    assert cell == "-"
                elif key:
                    assert near(cell, value * (100 if head in PERCENTS else 1)), (head, cell, value)
                    checked += 1
                if head == "error / allowed" and row["accuracy"]:
                    a = row["accuracy"]
                    worst = max(a["error"] / a["allowed"], a["row_error"] / a["row_allowed"])
                    assert near(cell, worst)
    assert checked > 3


def test_cold_start_has_its_parts():
    found = results()
    heads = [th.text for th in next(section(shown(found), "cold-start").all("thead")).all("th")]
    assert heads[1:5] == ["import s", "load s", "first call s", "in all s"]
    cells = [c.text for c in lines(shown(found), "cold-start")[0][0].children]
    assert cells[1:5] == ["3.100", "1.500", "0.6000", "5.200"]


def test_the_best_accurate_is_marked():
    found = results()
    cases = [c for c in found["cases"] if c["layer"] == "model"]
    for case, rows in zip(cases, lines(shown(found), "whole-models")):
        best = [row.children[0].text for row in rows if "best" in row.classes]
        if case["disturbed"]:
            assert not best
            continue
        assert len(best) == 1 and best[0].startswith(ranked(case)[0]["program"])
        assert "best accurate" in best[0]
    steps = lines(shown(found), "what-each-step-gains")[0]
    assert not any("best" in row.classes for row in steps)


def test_what_is_missing_is_said():
    found = variants.gpu()
    found["cases"] += results()["cases"]
    tree = shown(found)
    said = section(tree, "whole-models").text
    assert (
        "WRONG: a program of ours beyond the accuracy rule, so not timed: largest error 0.5" in said
    )
    assert "failed with an error: RuntimeError: engine <build> failed & gave up" in said
    assert "skipped: cannot run here: timm is not installed" in said
    assert "inaccurate, not ranked: largest error 0.3, allowed 0.1" in said
    assert "Disturbed, not to be trusted: other processes took 14% of the processor." in said


def test_everything_of_machine_run_method_and_peaks_is_there():
    found = results()
    said = section(shown(found), "machine-and-run").text
    text = str(found["method"]["text"])
    assert text in section(shown(found), "how-it-was-measured").text
    del found["method"]["text"]

    def values(part: Any) -> list[str]:
        if isinstance(part, dict):
            return [v for value in part.values() for v in values(value)]
        return [
            f"{part:,.10g}" if isinstance(part, float) else "none" if part is None else str(part)
        ]

    for part in ("machine", "run", "method", "peaks"):
        for key, value in found[part].items():
            assert key in said
            assert all(v in said for v in values(value))


def test_every_column_is_defined():
    tree = shown(
        {**results(), "cases": [*results()["cases"], *variants.counted_operations()["cases"]]}
    )
    terms = {dt.text for dt in tree.all("dt")}
    heads = {COLUMNS[name].head for names in LAYERS.values() for name in names.split()}
    assert heads <= terms
    for word in ("spread", "speed-up", "scenario", "MFU", "drift", "p90 ms", "disturbed", "accuracy rule"):  # fmt: skip
        assert word in terms
    assert all(dd.text for dd in tree.all("dd"))


@pytest.mark.parametrize(
    "front, start",
    [
        ("run", "python -m benchmarks run --suite full"),
        ("pytest", "python -m pytest --suite full"),
    ],
)
def test_the_command_that_makes_it_again(front, start):
    found = results()
    found["run"]["front"] = front
    said = next(shown(found).all("pre")).text
    assert said == f"{start}\npython -m benchmarks report FILE"


def one_picture(folder: Path) -> Picture:
    path = folder / "one.png"
    path.write_bytes(b"\x89PNG not really")
    return Picture(path, "One picture", "How it is read.", "What it shows.")


def test_nothing_comes_from_elsewhere(tmp_path):
    picture = one_picture(tmp_path)
    text = page.page(results(), [picture])
    tree = shown(results(), [picture])
    assert not list(tree.all("script", "link", "iframe", "object", "base"))
    data = base64.b64encode(picture.path.read_bytes()).decode()
    assert not re.search(r"https?:|@import|url\(|srcset|//[a-z]", text.replace(data, ""))
    for element in tree.all():
        assert element.attributes.get("src", "data:").startswith("data:")
        assert element.attributes.get("href", "#").startswith("#")
    image = next(tree.all("img"))
    assert base64.b64decode(image.attributes["src"].partition(",")[2]) == picture.path.read_bytes()
    assert image.attributes["alt"] == picture.alt
    assert picture.title in tree.text and picture.caption in tree.text
    targets = {e.attributes["id"] for e in tree.all("section")}
    assert {a.attributes["href"][1:] for a in tree.all("a")} == targets


def test_every_string_is_escaped(tmp_path):
    """Whatever a machine, a package or an error message calls itself."""

    def infected(part: Any) -> Any:
        if isinstance(part, dict):
            # what the schema fixes stays; names that the file is free in do not
            kept = {"layer", "status", "scenario", "front"}
            return {k: v if k in kept else infected(v) for k, v in part.items()}
        if isinstance(part, list):
            return [infected(v) for v in part]
        return part + EVIL if isinstance(part, str) else part

    found = infected(copy.deepcopy(results()))
    found["machine"][EVIL] = EVIL
    for case in found["cases"]:
        case["clocks"] = {EVIL: {EVIL: 1}}
        for row in case["rows"]:
            row["parts"] = row["parts"] and {EVIL: 1.0}
    picture = one_picture(tmp_path)
    tree = shown(found, (Picture(picture.path, EVIL, EVIL, EVIL),))
    assert not list(tree.all("script"))
    assert [i.attributes["alt"] for i in tree.all("img")] == [EVIL]
    assert all(i.attributes["src"].startswith("data:") for i in tree.all("img"))
    assert tree.text.count(EVIL) > 100


@pytest.mark.parametrize("found", [variants.empty(), variants.nothing_timed(), {**results(), "cases": []}])  # fmt: skip
def test_empty_results(found):
    tree = shown(found)
    assert "does not say who is faster" in section(tree, "verdict").text
    assert "made without pictures" in section(tree, "pictures").text
    for rows in lines(tree, "whole-models") if found["cases"] else []:
        assert all("skipped" in row.classes for row in rows)


def test_a_file_that_says_little():
    found = {**results(), "machine": {}, "peaks": {}, "method": {}, "run": {}}
    said = shown(found).text
    assert "an unknown device" in said and "The file says nothing of it." in said
    assert "does not say how the times were taken" in said
    assert "of a commit that the file does not name" in said


def test_it_is_written_whole(tmp_path):
    path = tmp_path / "new" / "index.html"
    assert page.write(results(), [], path) == path
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_with_its_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.plots import draw

    pictures = draw(variants.one_model(), tmp_path)
    images = list(shown(variants.one_model(), tuple(pictures)).all("img"))
    assert len(images) == len(pictures) == 3
