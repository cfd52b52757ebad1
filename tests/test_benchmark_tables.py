"""benchmarks.reporting.tables: every number is the file's, every row is there, and it fits the terminal."""

import random
import re

import pytest

from benchmark_results import case, results, untimed
from benchmarks.reporting import phrases
from benchmarks.reporting.tables import text
from benchmarks.results import NUMBERS, ranked, timed

ALWAYS = {"p50_ms", "p90_ms", "images_s"}  # of a timed row: it is ranked by them
EXTREMES = (0.0123, 9.996, 1234.5, 98765.4)


def block(shown, name):
    """The lines of the first case with that name."""
    lines = shown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(name))
    return lines[start : lines.index("", start)]


def cells(line, width):
    return line[width:].split()


def test_every_number_of_every_row_is_the_files():
    """Of the wide table, whose columns are all there; each number is one of its own."""
    found, draw = results(), random.Random(1)
    model = found["cases"][0]
    rows = list(timed(model))
    for i, row in enumerate(rows):
        row.update({name: draw.uniform(20, 900) for name in NUMBERS})
        row["spread"], row["mfu"] = 0.011 + 0.01 * i, 0.21 + 0.1 * i
        row["p50_ms"], row["p90_ms"], row["p99_ms"] = (draw.uniform(20, 900) for _ in range(3))
        row["accuracy"] = {"error": 0.1 * i, "allowed": 1.0, "row_error": 0.3, "row_allowed": 4.0}
    lines = block(text(found, 200), model["name"])
    heads = lines[1].split("  ")
    heads = [h.strip() for h in heads if h.strip()]
    assert heads == [
        "p50 ms", "p90 ms", "p99 ms", "spread", "images/s", "speed-up", "TFLOP/s", "MFU", "error", "first s",
        "held MiB", "peak MiB", "launches",
    ]  # fmt: skip
    for i, (row, line) in enumerate(zip(rows, lines[2:])):
        assert line[2:].startswith(row["program"])
        share = max(0.1 * i, 0.075)
        assert cells(line, 2 + len("transformers, eager")) == [
            *(phrases.digits(row[n]) for n in ("p50_ms", "p90_ms", "p99_ms")),
            f"{row['spread']:.1%}", phrases.digits(row["images_s"]), f"{row['speed_up']:.2f}x",
            phrases.digits(row["tflops"]), f"{row['mfu']:.0%}", f"{share:.2f}", phrases.digits(row["first_s"]),
            phrases.digits(row["held_mib"]), phrases.digits(row["peak_mib"]), f"{row['launches']:.0f}",
        ]  # fmt: skip


def test_numbers_stand_under_each_other():
    lines = block(text(results(), 200), results()["cases"][2]["name"])
    ends = [m.end() for m in re.finditer(r"\S+(?: \S+)*", lines[1])]
    for line in lines[2:]:
        if "%" in line:
            assert [m.end() for m in re.finditer(r"\S+", line[23:])] == [e - 23 for e in ends]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_fits(width):
    for found in (results(), many_programs(), gpu()):
        shown = text(found, width)
        assert max(map(len, shown.splitlines())) <= width
        assert "p50" in shown and (width < 80 or "speed-up" in shown)
        for c in found["cases"]:
            for row in c["rows"]:
                assert row["program"] in " ".join(shown.split())


def test_what_is_left_out_is_said():
    assert "Left out at 100 columns: launches" in text(results(), 100)
    assert "Left out" not in text(results(), 300)


def test_ascii():
    text(results(), 100).encode("ascii")
    text(gpu(), 100).encode("ascii")


def test_who_is_marked():
    """The best of the accurate programs: one that is faster and inaccurate is not, and none where disturbed."""
    found = results()
    for c in found["cases"]:
        lines = block(text({**found, "cases": [c]}, 200), c["name"])
        marked = [line for line in lines if line.startswith("* ")]
        assert len(marked) == (not c["disturbed"])
        assert all(line[2:].startswith(ranked(c)[0]["program"]) for line in marked)
    c = found["cases"][2]
    c["rows"][4].update(p90_ms=0.1, images_s=1e6)
    assert ranked(c)[0]["program"] == "vit-fast"


@pytest.mark.parametrize("status", ["wrong", "failed", "skipped"])
def test_what_has_no_times_is_said_in_words(status):
    found = results()
    c = found["cases"][0]
    c["rows"][5] = untimed("vit-fast", status, "the reason,\nin two lines")
    if status == "wrong":
        c["rows"][5]["accuracy"] = {"error": 30.0, "allowed": 10.0, "row_error": 0.0, "row_allowed": 0.0}  # fmt: skip
    line = next(x for x in block(text(found, 200), c["name"]) if "vit-fast" in x)
    assert f"{status}: the reason, in two lines" in line
    assert ("(3.00 times what is allowed)" in line) == (status == "wrong")


def test_inaccurate_and_disturbed_are_said_in_words():
    found = results()
    lines = block(text(found, 200), found["cases"][2]["name"])
    at = next(i for i, line in enumerate(lines) if "OpenVINO" in line)
    assert lines[at + 1].strip() == "inaccurate: largest error 0.3, allowed 0.1; not ranked"
    lines = block(text(found, 200), found["cases"][1]["name"])
    assert "disturbed: other processes took 14% of the processor; these times are not" in lines[2]


def test_bandwidth_where_nobody_counts_operations():
    lines = block(text(results(), 200), "ViT-B/16-224 layer_norm")
    assert "GB/s" in lines[1] and "TFLOP/s" not in lines[1]
    assert "0.625" in lines[3]  # 1e7 bytes in 16 ms


def test_small_and_large_times_have_their_units():
    found = gpu()
    assert "p50 us" in text(found, 100)
    for row in found["cases"][0]["rows"]:
        row.update(p50_ms=2e4, p90_ms=2e4, p99_ms=2e4)
    assert "p50 s" in text(found, 100)
    assert [phrases.digits(x) for x in EXTREMES] == ["0.0123", "10.0", "1,234", "98,765"]
    assert [phrases.digits(x) for x in (None, 0, 1.5e-7, float("inf"))] == ["-", "0", "0.000000150", "inf"]  # fmt: skip
    assert [phrases.duration(x) for x in (0.0123, 12.3, 12345)] == ["12.3 us", "12.3 ms", "12.3 s"]


def test_parts_of_a_cold_start():
    lines = block(text(results(), 200), "ViT-B/16-224 first answer")
    assert all(part in lines[1] for part in ("import s", "load s", "first call s"))
    assert "3.10" in lines[2] and "0.600" in lines[2]


def test_the_verdict_is_counted():
    """Ours is ahead of, behind, wrong, disturbed, and alone, each in one case."""
    draw, found = random.Random(0), results()
    found["cases"] = [made(name, 24.0 if name == "b" else 10.0, draw) for name in "abcde"]
    _, _, wrong, disturbed, alone = found["cases"]
    wrong["rows"][1] = untimed("vit-fast", "wrong", "error 3, allowed 1")
    disturbed["disturbed"] = "hot"
    alone["rows"][0]["status"] = "inaccurate"
    shown = " ".join(text(found, 300).split())
    assert "Verdict, model: vit-fast is the fastest accurate program in 1 of 3 cases" in shown
    assert "and loses 2. Not counted: 1 disturbed, 1 without an accurate rival." in shown
    assert "Lost: b tokens fp32 batch 8: PyTorch reaches 400.0 images/s, vit-fast 333.3" in shown
    assert "Lost: c tokens fp32 batch 8: no accurate result of vit-fast (vit-fast is wrong" in shown
    assert "Disturbed: d tokens fp32 batch 8 Method" in shown


def test_ablation_is_no_case_to_win():
    found = results()
    found["cases"] = [c for c in found["cases"] if c["layer"] == "ablation"]
    for row in found["cases"][0]["rows"][1:]:
        row["ours"] = True
    assert "Verdict" not in text(found, 100)


def test_the_card_and_the_method_are_there():
    shown = " ".join(text(results(), 100).split())
    for said in ("A Processor", "2 threads", "torch 2.13.0+cpu", "openvino 2026.4.1", "commit abc"):
        assert said in shown
    assert shown.endswith("Method: Programs run in turn, round by round.")


# what a file may lack


def made(name, ours_ms, draw):
    return case(
        "model", name, name, "tokens", "fp32", 8, 1e9, 1e6, {"PyTorch": 20.0, "vit-fast": ours_ms}, "PyTorch", draw
    )  # fmt: skip


def gpu():
    """Microseconds, launches, no processor."""
    found, draw = results(), random.Random(0)
    ms = {"transformers, sdpa": 0.8, "vit-fast": 0.0523}
    base = "transformers, sdpa"
    made = case("model", "vit-b", "ViT-B/16", "tokens", "bf16", 1, 3.5e10, 1.7e8, ms, base, draw)
    found["cases"] = [made]
    found["machine"].update(device="NVIDIA H200", processor=None, threads=None, capability=None)
    found["run"]["device"] = "cuda"
    return found


def many_programs():
    found, draw = results(), random.Random(0)
    ms = {f"program {i} with a name that is long, longer than is good": 10.0 + i for i in range(17)}
    base, title = next(iter(ms)), "ViT " * 40
    found["cases"] = [case("model", "x", title, "tokens", "fp32", 8, 1e9, 1e6, ms, base, draw)]
    return found


def test_no_timed_row_at_all():
    found = results()
    for c in found["cases"]:
        c["rows"] = [untimed(row["program"], "failed", "") for row in c["rows"]]
    shown = text(found, 100)
    assert "the file gives no reason" in shown and "no speed-up: the baseline" in shown
    assert "No case of this file that is to be trusted" in shown
    found["cases"] = []
    assert "No case in this file." in text(found, 100)


def test_every_optional_number_may_lack():
    found = results()
    for c in found["cases"]:
        c.update(flops=None, bytes=None, drift=None)
        for row in timed(c):
            row.update(dict.fromkeys(set(NUMBERS) - ALWAYS), accuracy=None, parts=None)
    shown = text(found, 100)
    assert (
        "p50 ms" in shown and "None" not in shown and "speed-up" not in shown.split("* the best")[0]
    )
    found["run"].update(at=None, commit=None, arguments=None)
    found["machine"] = {"device": None}
    found["method"] = {}
    assert "None" not in text(found, 100)


def test_a_number_one_row_lacks_is_a_dash():
    found = results()
    found["cases"] = found["cases"][:1]
    found["cases"][0]["rows"][0]["images_s"] = None
    line = block(text(found, 200), found["cases"][0]["name"])[2]
    assert cells(line, 23)[4] == "-"


def test_a_baseline_that_was_skipped():
    found = results()
    found["cases"][0]["rows"][0] = untimed("transformers, eager", "skipped", "no room")
    lines = block(text(found, 200), found["cases"][0]["name"])
    assert "no speed-up: the baseline, transformers, eager, was not timed" in lines[2]


def test_unicode_keeps_its_columns():
    found = results()
    found["cases"] = found["cases"][:1]
    found["cases"][0]["rows"][0]["program"] = "変換器"
    lines = block(text(found, 200), found["cases"][0]["name"])
    assert len({phrases.columns(line) for line in lines if "%" in line or "p50" in line}) == 1
    assert phrases.columns("変e\u0301") == 3
