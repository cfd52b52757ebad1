import subprocess
import sys

import pytest
import torch

import vit_fast
from vit_fast import cli, doctor, torch_ops
from vit_fast.kernels import tables
from vit_fast.kernels.tuning import KNOWN


def test_version_and_help(capsys):
    for argv, words in (
        (["--version"], vit_fast.__version__),
        (["--help"], "inspect"),
        (["inspect", "--help"], "--arch"),
        (["tune", "--help"], "vit-b-16, vit-l-16, "),
        (["models", "--help"], "accelerated inside"),
        (["doctor", "--help"], "exit status"),
        (["bench", "--help"], "usage: vit-fast bench"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == 0
        assert words in capsys.readouterr().out


def test_bench_is_the_benchmarks_run(capsys):
    assert cli.main(["bench", "--list", "--suite", "toy", "--only", "qkv", "block"]) == 0
    assert capsys.readouterr().out.split("\n")[:-1] == [
        "operation Toy qkv fp32 batch 1",
        "block Toy block fp32 batch 1",
    ]
    assert cli.main(["bench", "--suite", "toy", "--only", "nothing of that name"]) == 2
    for command in ("report", "compare"):
        with pytest.raises(SystemExit):
            cli.main(["bench", command, "--help"])
        assert f"usage: vit-fast bench {command}" in capsys.readouterr().out
    for argv in (["bench", "--nonsense"], ["doctor", "--list"], ["bench", "--suite", "none"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == 2


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


@pytest.mark.parametrize("troubles", [(), ("triton is not installed",)])
def test_doctor(monkeypatch, capsys, troubles):
    found = doctor.Diagnosis(("torch 2.11",), troubles)
    monkeypatch.setattr(doctor, "diagnose", lambda facts: found)
    assert cli.main(["doctor"]) == bool(troubles)
    out = capsys.readouterr().out
    assert "torch 2.11" in out
    assert "".join(troubles) in out


def test_tune_without_a_gpu(monkeypatch, capsys):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["tune"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "vit-fast tune: it measures on a GPU, and PyTorch sees none here: `vit-fast doctor` says why\n"
    )


def test_tune_where_the_kernels_do_not_run(monkeypatch, capsys):
    tune = pytest.importorskip("vit_fast.tune")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tune, "choose_ops", lambda *args: (torch_ops(), "no C compiler"))
    assert cli.main(["tune"]) == 2
    assert "the kernels do not run on this GPU: no C compiler" in capsys.readouterr().err


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A GPU to tune on as far as the command looks; what would be measured there is kept."""
    tune = pytest.importorskip("vit_fast.tune")
    calls = []

    def measure(cases, gpu, device, timer, path, versions, minutes, progress):
        calls.append((list(progress(cases)), path, versions, minutes))
        return tune.Report(path, measured=3, better=2, kept=1, left=4, notes=["a note"])

    monkeypatch.setattr(tune, "tune", measure)
    gpu = KNOWN["sm_90"]
    monkeypatch.setattr(tune, "here", lambda: (gpu, torch.device("cpu"), None))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return calls


def test_tune(measured, capsys, tmp_path):
    assert cli.main(["tune", "--model", "vit-b-16", "--batch", "1", "8", "--minutes", "5"]) == 0
    ((cases, path, versions, minutes),) = measured
    assert len(cases) == 10
    assert path == tmp_path / "vit-fast/tuned/h100_h200.json"
    assert versions["torch"] == torch.__version__
    assert versions["vit-fast"] == vit_fast.__version__
    assert minutes == 5
    out = capsys.readouterr().out
    assert f"10 operations on H100/H200, to {path}" in out
    assert "NOTE: a note" in out
    assert "3 measured, in 2 of them a candidate beats the launch rule" in out
    assert "1 were measured before, 4 are left: the same command goes on with them" in out


def test_tune_writes_where_it_is_told(measured, tmp_path):
    cli.main(["tune", "--model", "vit-b-16", "--dtype", "fp16", "fp32", "--out", "here.json"])
    ((cases, path, _, _),) = measured
    assert str(path) == "here.json"
    assert {case.shape["dtype"] for case in cases} == {"fp16", "fp32"}


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--model", "vit-q"], "'vit-q' is no known model"),
        (["--batch", "0"], "invalid positive int value: '0'"),
        (["--minutes", "-1"], "invalid positive float value"),
        (["--dtype", "fp8"], "invalid choice: 'fp8'"),
    ],
)
def test_tune_called_wrongly(measured, capsys, argv, words):
    try:
        assert cli.main(["tune", *argv]) == 2
    except SystemExit as stop:
        assert stop.code == 2
    assert words in capsys.readouterr().err
    assert measured == []


def test_tune_that_cannot_write_or_breaks_the_gpu(measured, monkeypatch, capsys):
    from vit_fast import tune

    def fails(*args, **options):
        raise error

    monkeypatch.setattr(tune, "tune", fails)
    error = PermissionError(13, "Permission denied")
    assert cli.main(["tune"]) == 2
    assert "cannot be written (Permission denied): say --out FILE" in capsys.readouterr().err
    error = tune.Unusable("it has left the GPU unusable")
    assert cli.main(["tune"]) == 1
    assert "left the GPU unusable" in capsys.readouterr().err


def test_tune_without_a_home(measured, monkeypatch, capsys):
    monkeypatch.setattr(tables, "cache_folder", lambda: None)
    assert cli.main(["tune"]) == 2
    assert "no home folder to keep a table in: say --out FILE" in capsys.readouterr().err
