"""What Triton says on a machine where it cannot compile, load or launch becomes a reason."""

import os
import subprocess
import sys
import types

import pytest
import torch

from vit_fast import ops, torch_ops

trial = pytest.importorskip("vit_fast.kernels.trial")

CPU = torch.device("cpu")
WORDS = "device kernel image is invalid"


@pytest.fixture
def compiled(monkeypatch):
    """As in a process without the interpreter; what is launched is given by each test."""
    monkeypatch.setattr(trial.knobs.runtime, "interpret", False)


def failing(error):
    def launch(x, y):
        raise error

    return launch


@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError(f"Triton Error [CUDA]: {WORDS}"), WORDS),
        (RuntimeError("Failed to find C compiler. Please specify"), "C compiler"),
        (AssertionError("libcuda.so cannot found!\nPossible files"), "found! Possible files"),
        (subprocess.CalledProcessError(1, ["gcc", "main.c"]), "'gcc', 'main.c'"),
        (PermissionError(13, "Permission denied", "/home/u/.triton"), "/home/u/.triton"),
        (trial.triton.runtime.errors.PTXASError("no sm_999"), "PTXASError: PTXAS error: no sm_999"),
        (ImportError("undefined symbol: cuLaunchKernelEx"), "cuLaunchKernelEx"),
    ],
)
def test_a_fault_is_a_reason(compiled, error, words):
    why = trial.why_not(CPU, failing(error))
    assert words in why
    assert why.startswith(f"Triton {trial.triton.__version__} cannot compile for it")
    assert "needs a C compiler" in why


def test_long_words_are_cut(compiled):
    assert len(trial.why_not(CPU, failing(RuntimeError("x" * 5000)))) < 700


def test_what_passes_is_not_remembered_as_a_fault(compiled):
    """A full GPU has room later."""
    with pytest.raises(RuntimeError, match="out of memory"):
        trial.why_not(CPU, failing(RuntimeError("Triton Error [CUDA]: out of memory")))
    with pytest.raises(KeyError):
        trial.why_not(CPU, failing(KeyError("a mistake of ours")))


def test_no_mode_of_the_caller_is_on(compiled):
    seen = []
    with torch._subclasses.FakeTensorMode(), torch.inference_mode():
        why = trial.why_not(
            CPU, lambda x, y: seen.append((type(x), torch.is_inference_mode_enabled()))
        )
    assert (why, seen) == ("", [(torch.Tensor, False)])


def test_the_interpreter_needs_no_compiler():
    if not trial.knobs.runtime.interpret:
        pytest.skip("kernels are compiled here")
    assert trial.why_not(CPU, failing(RuntimeError("launched"))) == ""
    x = torch.randn(16, 16).half()
    trial.trial_kernel[(1,)](x, y := torch.empty_like(x), SIZE=16)
    torch.testing.assert_close(y, (x.float() @ x.float()).half())


@pytest.mark.parametrize("arch, good", [(90, True), (80, True), (130, False)])
def test_compiled_for_gpus_that_are_not_here(arch, good):
    """Triton's own compiler, in a process where it is not replaced by the interpreter."""
    code = (
        "import torch, triton\n"
        "from vit_fast.kernels import static_check, trial\n"
        f"triton.runtime.driver.set_active(static_check._Driver({arch}))\n"
        "print('why:', trial.why_not(torch.device('cpu')))"
    )
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    why = done.stdout.partition("why: ")[2].strip()
    assert why == "" if good else f"Triton {trial.triton.__version__} cannot compile" in why


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA GPU as far as choose_ops looks; its memory is the CPU's."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    ops._look_for_triton.cache_clear()
    yield torch.device("cuda:0")
    ops._look_for_triton.cache_clear()


def test_choose_ops_has_a_reason_instead_of_a_crash(gpu, monkeypatch):
    monkeypatch.setattr(trial, "why_not", lambda device: WORDS)
    chosen, why = ops.choose_ops(gpu, torch.bfloat16)
    assert chosen is torch_ops()
    assert why == f"NVIDIA H200, compute capability 9.0: {WORDS}"


def test_choose_ops_takes_the_kernels_where_they_run(gpu, monkeypatch):
    tried = []
    monkeypatch.setattr(trial, "why_not", lambda device: tried.append(device) or "")
    monkeypatch.setattr(ops, "_folding_wins", lambda device: False)  # asks the GPU for its size
    for _ in range(2):
        chosen, why = ops.choose_ops(gpu, torch.bfloat16)
        assert (chosen.name, why) == ("triton", "NVIDIA H200, compute capability 9.0")
    assert tried == [gpu], "tried once"


def test_an_old_gpu_is_not_tried(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(trial, "why_not", types.SimpleNamespace())
    assert "compute capability 8.0" in ops.choose_ops(gpu, torch.bfloat16)[1]
