"""`kernels` ships as `vit_fast.kernels`, and is never importable as the package that transformers looks for.

`benchmarks` ships as `vit_fast.benchmarks`, without what needs a checkout and without results.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# a table of a GPU that was measured lies in the copies that are built, whether one ships or not
TABLE = "tuned/a_gpu_of_the_tests.json"
KERNELS = {
    f"vit_fast/kernels/{path.relative_to(ROOT / 'kernels')}"
    for pattern in ("*.py", "tuned/*.json")
    for path in (ROOT / "kernels").glob(pattern)
}
BENCHMARKS = {
    f"vit_fast/{path.relative_to(ROOT)}"
    for path in (ROOT / "benchmarks").rglob("*.py")
    if path.relative_to(ROOT / "benchmarks").parts[0] not in ("gpu", "candidates")
}
IMPORTS = "import vit_fast, vit_fast.kernels.layer_norm; from transformers import ViTModel; print(vit_fast.__file__)"

# imports each module, and asks for what works in an installed copy and what needs a checkout
ALL = """
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
from vit_fast import cli
from vit_fast.benchmarks import __main__ as benchmarks
print([
    cli.main(["bench", "--suite", "toy", "--only", "qkv", "--list"]),
    cli.main(["bench", "--suite", "toy", "--record"]),
    benchmarks.main(["gpu"]),
    benchmarks.main(["table", "gpu.json"]),
])
print([name for name in sys.modules if name.split(".")[0] in ("benchmarks", "tests", "kernels")])
"""


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Standard output of `command`; its standard error is the message when it fails."""
    args, env = [str(c) for c in command], {**os.environ, **env}
    done = subprocess.run(args, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what a build reads, so that nothing is left in the checkout."""
    pytest.importorskip("setuptools", minversion="77", reason="the build needs setuptools >= 77")
    copy = tmp_path_factory.mktemp("build") / "checkout"
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("vit_fast", "kernels", "benchmarks", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    (copy / "kernels" / TABLE).parent.mkdir(exist_ok=True)
    (copy / "kernels" / TABLE).write_text("{}")
    return copy


@pytest.fixture(scope="module")
def wheel(checkout) -> Path:
    return built(checkout, checkout.parent / "wheels")


def built(checkout: Path, out: Path) -> Path:
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, ".")
    run(sys.executable, "-m", "pip", *build, cwd=checkout)
    (path,) = out.glob("vit_fast-*.whl")
    return path


def test_kernels_is_not_a_package():
    assert not (ROOT / "kernels/__init__.py").exists()
    assert os.readlink(ROOT / "vit_fast/kernels") == "../kernels"


def test_benchmarks_are_linked():
    assert os.readlink(ROOT / "vit_fast/benchmarks") == "../benchmarks"


def test_nothing_imports_kernels_by_its_bare_name():
    bare = re.compile(r"^\s*(?:import|from)\s+kernels\b", re.M)
    assert bare.search("    from kernels.linear import linear")
    folders = [p for p in ROOT.iterdir() if p.is_dir() and p.name[0] != "."]
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    assert len(files) > len(KERNELS)
    assert [str(path) for path in files if bare.search(path.read_text(encoding="utf-8"))] == []


def test_imports_at_the_root_of_a_checkout():
    assert Path(run(sys.executable, "-c", IMPORTS, cwd=ROOT).strip()).parent == ROOT / "vit_fast"


def test_imports_without_triton_and_without_a_gpu():
    code = "import sys; sys.modules['triton'] = None; import vit_fast, vit_fast.kernels"
    run(sys.executable, "-c", code, cwd=ROOT, CUDA_VISIBLE_DEVICES="")


def test_wheel_holds_the_kernels_once_and_imports_elsewhere(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert len(names) == len(set(names))
    expected = KERNELS | {f"vit_fast/kernels/{TABLE}"}
    assert {n for n in names if n.startswith("vit_fast/kernels/")} == expected
    assert {n for n in names if n.startswith("vit_fast/benchmarks/")} == BENCHMARKS
    assert {f"vit_fast/{n}" for n in ("__init__.py", "families/__init__.py", "py.typed")} <= {
        *names
    }
    assert {n.partition("/")[0] for n in names if ".dist-info/" not in n} == {"vit_fast"}
    out = run(sys.executable, "-c", IMPORTS, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert Path(out.strip()) == tmp_path / "site/vit_fast/__init__.py"
    find = "from vit_fast.kernels import tables; print(tables.shipped_path('A GPU of the tests'))"
    out = run(sys.executable, "-c", find, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert Path(out.strip()).read_text() == "{}", "a table is found where it is installed"


def test_benchmarks_of_a_wheel_run_elsewhere(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    empty.mkdir()
    modules = sorted(n.removesuffix(".py").replace("/", ".") for n in BENCHMARKS)
    (empty / "all.py").write_text(ALL.format(modules=[m for m in modules if "__main__" not in m]))
    alone = dict(PYTHONPATH=str(site), OMP_NUM_THREADS="1")
    said = run(sys.executable, empty / "all.py", cwd=empty, **alone).split("\n")
    (empty / "all.py").unlink()
    assert said[:-1] == ["operation Toy qkv fp32 batch 1", "[0, 2, 2, 2]", "[]"]

    # a repository around it is not the one that it was built from
    author = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    run("git", "init", "--quiet", cwd=tmp_path)
    run("git", *author, "commit", "--quiet", "--allow-empty", "-m", "first", cwd=tmp_path)
    bench = ("bench", "--suite", "toy", "--only", "qkv", "--device", "cpu", "--no-pictures")
    run(sys.executable, "-m", "vit_fast.cli", *bench, cwd=empty, **alone)
    (path,) = empty.rglob("*.json")
    assert path.parts[-3] == ".benchmarks" and path.name == "toy.json"
    assert json.loads(path.read_text())["run"]["commit"] is None


def test_a_wheel_without_any_table(checkout, tmp_path):
    ignore = shutil.ignore_patterns("tuned", "build", "*.egg-info")
    bare = shutil.copytree(checkout, tmp_path / "checkout", symlinks=True, ignore=ignore)
    with zipfile.ZipFile(built(bare, tmp_path)) as archive:
        found = {n for n in archive.namelist() if n.startswith("vit_fast/kernels/")}
    assert found == {n for n in KERNELS if n.endswith(".py")}


def test_sdist_holds_each_folder_once_and_builds_the_same_wheel(checkout, wheel, tmp_path):
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", code, cwd=checkout)
    (path,) = tmp_path.glob("vit_fast-*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
        names = [name.partition("/")[2] for name in archive.getnames()]
    folder = {"vit_fast/kernels/tuned"}  # tarfile names folders, too
    assert {
        f"vit_fast/{n}" for n in names if re.fullmatch(r"kernels/.+", n)
    } - folder == KERNELS | {f"vit_fast/kernels/{TABLE}"}
    linked = ("vit_fast/kernels", "vit_fast/benchmarks")
    assert not [n for n in names if n.startswith(linked)]
    # what needs a checkout is in this one
    assert {"benchmarks/gpu/program.py", "benchmarks/candidates/check.py"} <= set(names)
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    both = (zipfile.ZipFile(w).namelist() for w in (wheel, built(unpacked, tmp_path / "again")))
    first, again = map(sorted, both)
    assert first == again
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "tests/conftest.py"} <= set(names)


@pytest.mark.slow
def test_installed_wheel_runs_elsewhere(wheel, tmp_path):
    venv.create(tmp_path / "venv", system_site_packages=True)
    python = tmp_path / "venv/bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    # torch and transformers of the environment that the tests run in, without its own vit_fast
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(str(Path(torch.__file__).parents[1]))
    assert Path(run(python, "-c", IMPORTS, cwd=tmp_path).strip()) == site / "vit_fast/__init__.py"
    assert "usage" in run(tmp_path / "venv/bin/vit-fast", "--help", cwd=tmp_path)
