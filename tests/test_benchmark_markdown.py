"""reporting.markdown: the table says what the file says, and goes into a README without touching the rest."""

import re
from pathlib import Path

import pytest

from benchmark_results import results, untimed
from benchmarks.reporting.markdown import END, include, ratios, refresh
from benchmarks.results import ranked, row_of, write

ROOT = Path(__file__).parents[1]
FILE = "benchmarks/results/a_processor/cpu.json"


def table(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    rows = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert set(rows[1]) == {"---"}
    return rows[0], rows[2:]


def models(found):
    return [c for c in found["cases"] if c["layer"] == "model"]


def test_every_number_is_the_files():
    found = results()
    head, rows = table(ratios(found))
    assert head[:3] == ["model", "dtype", "batch"]
    assert len(rows) == len(models(found)) == 12
    for case, row in zip(models(found), rows):
        assert row[:2] == [case["title"], case["dtype"]]
        assert row[2].split()[0] == str(case["batch"])
        for program, cell in zip(head[3:], row[3:]):
            timed = row_of(case, program)
            if timed is None:
                assert cell in ("-", "")
                continue
            ms, speed = re.fullmatch(r"\**([\d,.]+) \(([\d.]+)×\)\**(?: †)?", cell).groups()
            assert float(ms.replace(",", "")) == pytest.approx(timed["p50_ms"], rel=0.006)
            assert float(speed) == pytest.approx(timed["speed_up"], abs=0.006)


def test_the_best_accurate_one_is_bold():
    found = results()
    head, rows = table(ratios(found))
    for case, row in zip(models(found), rows):
        bold = [program for program, cell in zip(head, row) if cell.startswith("**")]
        best = [] if case["disturbed"] else [ranked(case)[0]["program"]]
        assert bold == best


def test_marks_are_explained():
    found = results()
    for case in models(found):
        case["rows"][4]["accuracy"] = None  # the reason has to be said in its own words
    markdown = ratios(found)
    head, rows = table(markdown)
    openvino = head.index("OpenVINO")
    assert [row[openvino].endswith("†") for row in rows] == [row[1] == "bf16" for row in rows]
    assert "† beyond the accuracy rule, and not ranked: OpenVINO (largest error 0.3" in markdown
    assert ", allowed 0.1) in bf16." in markdown
    assert [row[2].endswith("‡") for row in rows] == [bool(c["disturbed"]) for c in models(found)]
    assert "ViT-B/16-224 tokens fp32 batch 8: other processes took 14% of the processor" in markdown
    assert "ONNX Runtime (ONNX Runtime's CPU provider has no bf16 kernels) in bf16" in markdown
    assert "timm, torch.compile (timm is not installed) in ViT-B/16-224 tokens fp32 batch 1" in markdown  # fmt: skip
    assert "timm, torch.compile" not in head


def test_a_long_reason_is_cut():
    found = results()
    found["cases"][1]["disturbed"] = "others took 76% of the processors; " * 20
    (line,) = [x for x in ratios(found).splitlines() if x.startswith("‡")]
    assert "others took 76%" in line and line.endswith("....") and len(line) < 300


def test_an_error_is_said_by_its_worst():
    found = results()
    for i, case in enumerate(c for c in models(found) if c["dtype"] == "bf16"):
        worse = {"error": 2.0 + i, "allowed": 1.0, "row_error": 0.0, "row_allowed": 1.0}
        case["rows"][4]["accuracy"] = worse
        case["rows"][4]["why"] = f"error {i}"
    assert "OpenVINO (up to 7.00 times the error allowed) in bf16" in ratios(found)


def test_ours_that_is_wrong_is_said():
    found = results()
    found["cases"][0]["rows"][5] = untimed("vit-fast", "wrong", "error 3")
    markdown = ratios(found)
    head, rows = table(markdown)
    assert rows[0][head.index("vit-fast")] == "wrong"
    assert "wrong: beyond the accuracy rule, and not timed: vit-fast (error 3)" in markdown


def test_the_last_line_says_where_it_is_from():
    last = ratios(results(), "results/cpu.json").splitlines()[-1]
    for said in (
        "A Processor",
        "torch 2.13.0+cpu",
        "onnxruntime 1.31.1",
        "[cpu.json](results/cpu.json)",
        "`python -m benchmarks run --suite full`",
        "2026-11-21",
    ):
        assert said in last
    assert "timm" not in last  # not installed


def test_no_markup_from_names():
    found = results()
    case = found["cases"][0]
    case["title"] = "a|b*c <!-- /benchmarks -->"
    case["rows"][3] = untimed("x|y\nz", "failed", "a\n\n| b | <!-- /benchmarks -->")
    markdown = ratios(found)
    table(markdown)
    assert END not in markdown.replace("\\" + END, "")
    assert r"a\|b\*c" in markdown


def test_what_a_file_may_lack():
    found = results()
    for case in models(found):
        case["rows"][0] = untimed("transformers, eager", "skipped", "no room")
        for row in case["rows"]:
            row["speed_up"] = None
    _, rows = table(ratios(found))
    assert "×" not in str(rows) and "None" not in str(rows)
    for case in models(found):
        case["rows"] = [untimed(row["program"], "failed", "") for row in case["rows"]]
    nothing = "No whole model was timed.\n\n"
    assert ratios(found).startswith(f"{nothing}failed: transformers, eager (no reason given) in all rows")  # fmt: skip
    found["cases"] = []
    assert ratios(found).startswith(f"{nothing}A Processor")


def test_two_outputs_have_a_column():
    found = results()
    found["cases"][0]["what"] = "pooled"
    head, rows = table(ratios(found))
    assert head[1] == "output" and [rows[0][1], rows[1][1]] == ["pooled", "tokens"]


# inside a README


@pytest.fixture
def repository(tmp_path):
    (tmp_path / ".git").mkdir()
    write(tmp_path / FILE, results())
    return tmp_path


def readme(repository, text, name="README.md"):
    path = repository / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return path


MARKS = f"<!-- benchmarks: {FILE} -->\nold\n{END}\n"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_include_changes_the_block_alone_and_once(repository, newline):
    before, after = "# Größe  \n\n\ttext\n", "\nrest  \n\n```\n" + MARKS + "```\nno line break"
    path = readme(repository, (before + MARKS + after).replace("\n", newline))
    assert include(path, repository / FILE, results(), check=True)
    assert path.read_bytes().decode() == (before + MARKS + after).replace("\n", newline)
    assert include(path, repository / FILE, results())
    found = path.read_bytes().decode()
    expected = f"<!-- benchmarks: {FILE} -->\n\n{ratios(results(), FILE)}\n\n{END}\n"
    assert found == (before + expected + after).replace("\n", newline)
    assert not include(path, repository / FILE, results(), check=True)
    assert not include(path, repository / FILE, results())
    assert path.read_bytes().decode() == found
    assert sorted(p.name for p in repository.iterdir()) == [".git", "README.md", "benchmarks"]


def test_other_results_are_seen(repository):
    path = readme(repository, MARKS)
    include(path, repository / FILE, results())
    other = results(seed=1)
    assert include(path, repository / FILE, other, check=True)
    assert not refresh(path, check=True)
    write(repository / FILE, other)
    assert refresh(path, check=True)
    assert refresh(path) and not refresh(path)


def test_each_path_has_its_own(repository):
    other = "benchmarks/results/other/gpu.json"
    path = readme(repository, MARKS + "between\n" + MARKS.replace(FILE, other) + MARKS)
    assert include(path, repository / FILE, results())
    text = path.read_text()
    assert text.count("| model |") == 2
    assert f"{END}\nbetween\n<!-- benchmarks: {other} -->\nold\n{END}" in text
    with pytest.raises(ValueError, match=r"gpu.json, which cannot be read .*correct the path"):
        refresh(path)
    write(repository / other, results())
    assert refresh(path)
    assert path.read_text().count("| model |") == 3


def test_links_are_from_the_folder_of_the_file(repository):
    path = readme(repository, MARKS, "docs/page.md")
    assert include(path, repository / FILE, results())
    assert f"[cpu.json](../{FILE})" in path.read_text()


@pytest.mark.parametrize(
    "text, said",
    [
        ("nothing", "put these two lines"),
        ("```\n" + MARKS + "```\n", "put these two lines"),
        (MARKS.replace(FILE, "other.json"), f"<!-- benchmarks: {FILE} -->"),
        (f"a\n<!-- benchmarks: {FILE} -->\n", r"README.md:2: .* is never ended: put"),
        (f"a\n\n{END}\n", r"README.md:3: .* has no <!-- benchmarks: PATH --> before it"),
        (f"<!-- benchmarks: a -->\n{MARKS}", r"README.md:2: .* inside the block of line 1"),
    ],
)
def test_what_cannot_be_included_is_said(repository, text, said):
    path = readme(repository, text)
    with pytest.raises(ValueError, match=said):
        include(path, repository / FILE, results())
    assert path.read_text() == text


def test_no_readme(repository):
    with pytest.raises(ValueError, match="name a Markdown file"):
        include(repository / "none.md", repository / FILE, results())


def test_the_readme_is_up_to_date():
    assert not refresh(ROOT / "README.md", check=True)
