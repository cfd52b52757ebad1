import subprocess
import sys

import pytest

import vit_fast
from vit_fast import cli


def test_version_and_help(capsys):
    for argv, words in (
        (["--version"], vit_fast.__version__),
        (["--help"], "inspect"),
        (["inspect", "--help"], "--arch"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == 0
        assert words in capsys.readouterr().out


def test_inspect(capsys):
    pytest.importorskip("triton")
    assert (
        cli.main(["inspect", "--arch", "sm_90", "--only", "ViT-B/16-224 batch 64 layer_norm"]) == 0
    )
    out = capsys.readouterr().out
    assert "sm_90, compiled by Triton" in out
    assert "ViT-B/16-224 batch 64 layer_norm" in out
    assert "1 kernels for sm_90: no faults" in out


def test_inspect_of_nothing_is_no_success(capsys):
    pytest.importorskip("triton")
    assert cli.main(["inspect", "--arch", "sm_90", "--only", "no such launch"]) == 2
    assert "no launch matches --only 'no such launch'" in capsys.readouterr().err


def test_faults_make_the_status(monkeypatch, capsys):
    static_check = pytest.importorskip("vit_fast.kernels.static_check")
    from test_static_check import GOOD

    bad = GOOD.__class__(**{**GOOD.__dict__, "spill_bytes": 16})
    monkeypatch.setattr(static_check, "run", lambda *args: iter([GOOD, bad]))
    assert cli.main(["inspect", "--arch", "sm_90"]) == 1
    out = capsys.readouterr().out
    assert "FAULT: spills 16 bytes" in out
    assert "2 kernels for sm_90: 1 with faults" in out


def test_wrong_call():
    done = subprocess.run(
        [sys.executable, "-m", "vit_fast.cli", "inspect", "--arch", "sm_75"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "invalid choice: 'sm_75'" in done.stderr
