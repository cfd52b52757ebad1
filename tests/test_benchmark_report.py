"""benchmarks.report: the command's words, files and exit statuses, with and without pictures."""

import json
import sys
import types

import pytest

from benchmark_results import results
from benchmarks import report
from benchmarks.report import main, show
from benchmarks.reporting.markdown import END, ratios
from benchmarks.reporting.tables import text
from benchmarks.results import write


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "results" / "cpu.json"
    write(path, results())
    return path


@pytest.fixture
def drawers(monkeypatch):
    """Modules in the place of plots and page, that note what they are given."""
    given = {}

    def draw(found, folder):
        given["draw"] = (found, folder)
        return [types.SimpleNamespace(path=folder / "a.png")]

    def write_page(found, pictures, path):
        given["write"] = (found, pictures, path)
        return path

    plots, page = (
        types.ModuleType("benchmarks.plots"),
        types.ModuleType("benchmarks.reporting.page"),
    )
    plots.draw, page.write = draw, write_page
    monkeypatch.setitem(sys.modules, "benchmarks.plots", plots)
    monkeypatch.setitem(sys.modules, "benchmarks.reporting.page", page)
    return given


def test_table_pictures_and_page(file, drawers, capsys):
    assert main([str(file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(text(results()))
    folder = file.parent
    assert drawers["draw"] == (results(), folder / "cpu")
    found, pictures, path = drawers["write"]
    assert (found, path) == (results(), folder / "cpu.html")
    assert [picture.path for picture in pictures] == [folder / "cpu/a.png"]
    assert f"written to {folder / 'cpu.html'}" in out


def test_out_is_where_files_go(file, drawers, tmp_path):
    assert main([str(file), "--out", str(tmp_path / "there")]) == 0
    assert drawers["draw"][1] == tmp_path / "there/cpu"
    assert drawers["write"][2] == tmp_path / "there/cpu.html"


def test_without_pictures(file, drawers, capsys):
    assert main([str(file), "--no-pictures"]) == 0
    assert capsys.readouterr().out == text(results()) + "\n"
    assert drawers == {}


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_without_matplotlib_the_report_goes_on(error, file, drawers, monkeypatch):
    def draw(found, folder):
        raise error("pip install matplotlib")

    monkeypatch.setattr(sys.modules["benchmarks.plots"], "draw", draw)
    said = []
    written = show(file, results(), said.append)
    assert written == [file.parent / "cpu.html"]
    assert said[:2] == [text(results()), "No pictures: pip install matplotlib"]
    assert drawers["write"][1] == []


def test_without_a_page_the_report_goes_on(file, drawers, monkeypatch):
    def write_page(*_):
        raise RuntimeError("no page today")

    monkeypatch.setattr(sys.modules["benchmarks.reporting.page"], "write", write_page)
    said = []
    assert show(file, results(), said.append) == [file.parent / "cpu/a.png"]
    assert "No page: no page today" in said


def test_a_mistake_is_not_swallowed(file, drawers, monkeypatch):
    monkeypatch.setattr(sys.modules["benchmarks.plots"], "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        show(file, results(), lambda _: None)


def test_markdown_alone(file, drawers, capsys):
    assert main([str(file), "--markdown"]) == 0
    assert capsys.readouterr().out == ratios(results(), str(file)) + "\n"
    assert drawers == {}


def test_a_folder_is_its_newest_results_file(file, capsys):
    """By when it was run, whatever the dates of the files are; other files are left alone."""
    newer, older = results(), results()
    newer["run"]["at"], older["run"]["at"] = "2026-11-22T09:00:00Z", "2026-11-20T23:00:00Z"
    write(file.parent / "deeper" / "newer.json", newer)
    write(file.parent / "older.json", older)
    (file.parent / "families.json").write_text(json.dumps({"models": []}))
    (file.parent / "half.json").write_text("{")
    path, found = report.found(file.parent)
    assert (path.name, found) == ("newer.json", newer)
    assert main([str(file.parent), "--no-pictures"]) == 0
    assert "2026-11-22T09:00:00Z" in capsys.readouterr().out


def test_readme(file, tmp_path, capsys, drawers):
    readme = tmp_path / "README.md"
    (tmp_path / ".git").mkdir()
    readme.write_text(f"a\n<!-- benchmarks: results/cpu.json -->\n{END}\nb\n")
    before = readme.read_text()
    assert main([str(file), "--readme", str(readme), "--check"]) == 1
    assert "is not up to date: python -m benchmarks report" in capsys.readouterr().out
    assert readme.read_text() == before
    assert main([str(file), "--readme", str(readme)]) == 0
    assert ratios(results(), "results/cpu.json") in readme.read_text()
    assert main([str(file), "--readme", str(readme), "--check"]) == 0
    assert main([str(file), "--readme", str(readme)]) == 0
    assert "is up to date" in capsys.readouterr().out
    assert drawers == {}


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["FILE", "--check"], "--check needs --readme"),
        (["FILE", "--markdown", "--readme", "README.md"], "choose one"),
        (["FILE", "--markdown", "--out", "x"], "leave --out"),
        (["FILE", "--readme", "none.md"], "name a Markdown file"),
        (["none.json"], "No such file"),
        (["EMPTY"], "holds no results file"),
        (["OTHER"], "is not a results file of this suite"),
        ([], "required: FILE"),
    ],
)
def test_wrong_calls(arguments, said, file, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text("{}")
    names = {"FILE": file, "EMPTY": tmp_path / "empty", "OTHER": tmp_path / "other.json"}
    with pytest.raises(SystemExit) as stopped:
        main([str(names.get(a, a)) for a in arguments])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_help(capsys):
    for command in (main, __import__("benchmarks.compare", fromlist=["main"]).main):
        with pytest.raises(SystemExit) as stopped:
            command(["--help"])
        assert stopped.value.code == 0
        assert "Exit status" in capsys.readouterr().out
