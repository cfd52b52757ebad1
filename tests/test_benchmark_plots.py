"""The pictures: which are made of what, what they say, and that their words can be read."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import benchmark_variants as variants
from benchmark_results import results, untimed
from benchmark_variants import only
from benchmarks.plots import KINDS, Picture, draw
from benchmarks.plots.intensity import apart
from benchmarks.plots.notes import absences
from benchmarks.plots.operations import calls, grouped
from benchmarks.plots.style import OURS, RIVALS, balanced, looks

ROOT = Path(__file__).parents[1]
BASE = {
    "speed_up.png", "latency.png", "accuracy_batch_1.png", "accuracy_batch_8.png", "roofline_fp32.png",
    "roofline_bf16.png", "ablation_vit_b_16_224_tokens_fp32_batch_8.png", "operations_vit_b_16_224_fp32_batch_8.png",
    "cold_start.png",
}  # fmt: skip


def named(pictures: list[Picture]) -> set[str]:
    return {p.path.name for p in pictures}


@pytest.fixture
def drawing():
    return pytest.importorskip("matplotlib")


@pytest.fixture
def unwritten(drawing, monkeypatch):
    """Pictures are laid out, and none is written: that takes the time."""
    for kind in KINDS:
        monkeypatch.setattr(kind, "save", lambda figure, path: path)


def test_all_kinds(drawing, tmp_path):
    pictures = draw(results(), tmp_path / "new" / "folder")
    assert named(pictures) == BASE
    for p in pictures:
        assert p.path.read_bytes().startswith(b"\x89PNG")
        assert p.title and p.caption.endswith(".") and p.alt


@pytest.mark.parametrize(
    "layers, names",
    [
        (("block", "end to end"), set()),
        (("ablation",), {"ablation_vit_b_16_224_tokens_fp32_batch_8.png"}),
        (("cold start",), {"cold_start.png"}),
        (("operation",), {"operations_vit_b_16_224_fp32_batch_8.png", "roofline_fp32.png"}),
    ],
)
def test_a_picture_needs_its_cases(drawing, tmp_path, layers, names):
    assert named(draw(only(*layers), tmp_path)) == names


def test_latency_needs_two_batches(drawing, tmp_path):
    found = only("model")
    found["cases"] = [c for c in found["cases"] if c["batch"] == 8]
    assert "latency.png" not in named(draw(found, tmp_path))


def test_the_roofline_needs_roofs(drawing, tmp_path):
    found = only("operation")
    found["peaks"] = {"bf16": {"measured_tflops": 1.0, "nominal_tflops": None}}
    assert named(draw(found, tmp_path)) == {"operations_vit_b_16_224_fp32_batch_8.png"}


def test_a_model_without_bytes_stands_beside_its_operations(unwritten, tmp_path):
    """It has no place on the axis; without operations it is in no roofline."""
    found = {
        **results(),
        "cases": [*variants.counted_operations()["cases"], *only("model")["cases"]],
    }
    for c in found["cases"]:
        c["bytes"] = c["bytes"] if c["layer"] == "operation" else None
    pictures = {p.path.name: p for p in draw(found, tmp_path)}
    assert "beside the axis" in pictures["roofline_fp32.png"].caption
    assert "roofline_bf16.png" not in pictures


def test_the_speed_up_needs_its_baseline(drawing, tmp_path):
    found = only("model")
    for c in found["cases"]:
        for r in c["rows"]:
            r["speed_up"] = None
    assert "speed_up.png" not in named(draw(found, tmp_path))


def test_operations_need_company(drawing, tmp_path):
    found = only("operation")
    found["cases"] = found["cases"][:1]
    assert named(draw(found, tmp_path)) == {"roofline_fp32.png"}


@pytest.mark.parametrize("found", [variants.nothing_timed(), variants.empty()])
def test_nothing_to_draw(drawing, tmp_path, found):
    assert draw(found, tmp_path) == []


def test_much_is_divided_by_dtype(unwritten, tmp_path):
    found = variants.gpu()
    found["cases"] = [c for c in found["cases"] if c["dtype"] != "fp16"]
    names = named(draw(found, tmp_path))
    assert {"speed_up_bf16.png", "speed_up_fp32.png", "latency_bf16.png"} <= names
    accuracy = {name for name in names if name.startswith("accuracy")}
    assert accuracy == {"accuracy_batch_1.png", "accuracy_batch_256.png"}


def test_nothing_stays_behind(drawing, tmp_path):
    """Neither the settings nor the backend of whoever imports us; and their settings do not reach us."""
    found = only("cold start")
    first = draw(found, tmp_path)[0].path.read_bytes()
    with drawing.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        before = dict(drawing.rcParams)
        assert draw(found, tmp_path)[0].path.read_bytes() == first
        assert dict(drawing.rcParams) == before


def test_without_matplotlib(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from benchmarks import plots; from benchmarks.reporting import page\n"
        "try: plots.draw({'cases': []}, Path(sys.argv[1]))\n"
        "except ImportError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("pip install vit-fast[bench]")


def test_matplotlib_waits_for_a_picture():
    code = (
        "import sys; from benchmarks import plots; from benchmarks.reporting import page\n"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_looks():
    """A colour for each program, ours in tones of one; steps are no programs."""
    found = looks(results())
    assert list(found)[-1] == "vit-fast" and found["vit-fast"].color == OURS[0]
    assert found["transformers, eager"].color == RIVALS[0]
    assert len({k.color for k in found.values()}) == len(found)
    assert "+ linear" not in found
    assert all(k.number is None for k in found.values())
    many = looks(variants.many_programs())
    assert [k.number for k in many.values()] == list(range(1, 18))
    assert len({k.color for k in many.values()}) == 17


def test_operations_are_added_up_where_their_calls_are_known():
    found = variants.counted_operations()["cases"]
    shown = ["PyTorch", "vit-fast"]
    groups = dict(grouped(found, calls(found), shown, shown))
    sums = {b.program: b.length for b in groups["sum of these"]}
    for program in shown:
        rows = [next(r for r in c["rows"] if r["program"] == program) for c in found]
        times = [row["p50_ms"] * c["count"] for row, c in zip(rows, found)]
        bars = [
            bar for group in list(groups.values())[1:] for bar in group if bar.program == program
        ]
        assert [bar.length for bar in bars] == pytest.approx(times)
        assert sums[program] == pytest.approx(sum(times))
    assert "layer_norm  \u00d725" in groups
    assert calls([*found[:-1], {**found[-1], "count": None}]) is None
    assert "sum of these" not in dict(grouped(found, None, shown, []))


def test_warm_and_cold_are_not_mixed(unwritten, tmp_path):
    found = only("operation", "model")
    found["cases"] += [{**c, "cache": "cold"} for c in found["cases"]]
    names = named(draw(found, tmp_path))
    file = "operations_vit_b_16_224_fp32_batch_8"
    assert {f"{file}.png", f"{file}_cold.png"} <= names
    # twelve panels, which are divided; mixed they would be six
    assert {"latency_fp32.png", "latency_bf16.png"} <= names


def test_notes_say_what_is_missing():
    cases = [c for c in variants.gpu()["cases"] if c["layer"] == "model"]
    cases += only("model")["cases"]
    said = absences(cases)
    assert (
        said[0] == "WRONG, not timed: vit-fast in 5 of 117 cases: largest error 0.5, allowed 0.01."
    )
    assert (
        "Failed: TensorRT in 35 of 117 cases: RuntimeError: engine <build> failed & gave up."
        in said
    )
    first = "ViT-B/16-224 tokens fp32 batch 1"
    assert f"Skipped: timm, torch.compile in {first}: timm is not installed." in said
    assert (
        "Inaccurate: OpenVINO in 6 of 117 cases, up to 3 times the error that the rule allows."
        in said
    )
    assert any("Disturbed" in line and "14% of the processor" in line for line in said)


def test_many_disturbed_cases_are_counted():
    cases = only("model")["cases"]
    cases[1]["disturbed"] = "noise; drift; others"
    assert absences(cases[:2])[-1].endswith("batch 8: noise (and 2 more reasons).")
    for c in cases:
        c["disturbed"] = "noise"
    said = [line for line in absences(cases) if "Disturbed" in line]
    assert len(said) == 1 and "all 12 cases of this picture" in said[0]


def test_many_notes_are_cut_and_say_so():
    cases = only("model")["cases"][:1]
    cases[0]["rows"] += [untimed(f"program {i}", "skipped", "no") for i in range(20)]
    said = absences(cases)
    assert len(said) == 9 and said[-1] == "And 13 more notes, in the tables of the report."


def test_names_move_apart():
    places = apart([0.0, 5.0, 5.0, 5.1, 9.9, 10.0], 0.0, 10.0, 0.5)
    assert places == sorted(places) and places[0] >= 0 and places[-1] <= 10
    assert all(b - a > 0.499 for a, b in pairwise(places))
    assert sum(places[1:4]) / 3 == pytest.approx(15.1 / 3)


def test_balanced():
    assert balanced("DINOv3-ViT-H+/16-224", 17) == "DINOv3-ViT-\nH+/16-224"
    assert balanced("short", 17) == "short"
    assert balanced("unbreakable_and_long", 8) == "unbreakable_and_long"
