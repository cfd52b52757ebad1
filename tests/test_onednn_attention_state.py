"""What the oneDNN attention keeps, and what it leaves as it was: threads, TorchScript's switches, another PyTorch."""

import itertools
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from accuracy import assert_as_accurate
from tensors import f64, packed
from vit_fast import onednn_attention, torch_ops
from vit_fast.onednn_attention import DTYPES
from vit_fast.onednn_attention import onednn_attention as attention

WHY_NOT = onednn_attention.why_not(torch.float32)
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

DEFINITION = torch_ops().attention


@pytest.fixture
def forgotten():
    """Nothing is compiled or tried yet, nor is it after the test."""

    def forget() -> None:
        onednn_attention._trial.cache_clear()
        onednn_attention._build.cache_clear()

    forget()
    yield forget
    forget()


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads(dtype, forgotten):
    """Those of PyTorch, changed between calls, more than there are heads among them; and several callers at once."""
    tensors = packed(dtype=dtype)
    exact, baseline = DEFINITION(*f64(*tensors), 0.125), DEFINITION(*tensors, 0.125)
    onednn_attention.why_not(dtype)  # its trial compiles two
    before, kept = torch.get_num_threads(), onednn_attention._build.cache_info().currsize
    try:
        for threads in (1, 2, 7, 1):
            torch.set_num_threads(threads)
            assert_as_accurate(attention(*tensors, 0.125), exact, baseline)
        # oneDNN divides the work when it compiles
        assert onednn_attention._build.cache_info().currsize - kept == 3
    finally:
        torch.set_num_threads(before)

    start = threading.Barrier(4)

    def caller(seed: int) -> None:
        start.wait()
        for turn in range(12):  # the same new shapes at about the same time
            q, k, v = packed(1, 61 + turn % 3, dtype=dtype, seed=seed)
            y = attention(q, k, v, 0.125)
            assert_as_accurate(y, DEFINITION(*f64(q, k, v), 0.125), DEFINITION(q, k, v, 0.125))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(caller, range(4)))


def test_another_thread_runs_meanwhile():
    """The interpreter is not held while oneDNN multiplies."""
    q, k, v = packed(4, 1370, 12)
    attention(q, k, v, 0.125)
    done, seen = threading.Event(), [time.perf_counter()]

    def watch() -> None:
        while not done.is_set():
            seen.append(time.perf_counter())
            time.sleep(1e-3)

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    attention(q, k, v, 0.125)
    took = time.perf_counter() - start
    done.set()
    thread.join()
    assert max(b - a for a, b in itertools.pairwise(seen)) < took / 2


def test_nothing_of_the_process_is_changed(forgotten):
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attention(*packed(), 0.125)
    assert onednn_attention._build.cache_info().currsize == 3  # the trial's two as well
    assert torch.get_num_threads() == threads
    assert not torch._C._jit_llga_enabled()
    assert torch._C._jit_set_profiling_executor(True)


def test_reasons(monkeypatch, forgotten):
    """Without the mechanism PyTorch's attention runs, and why_not says what was missing."""
    tensors = packed()
    broken = {
        "turned off": (torch.backends.mkldnn, "is_available", bool),
        "does not run this partition": (
            onednn_attention,
            "_partition",
            lambda *_: "graph():\n  return ()",
        ),
        "is off by": (onednn_attention, "_scale", lambda scale: torch.tensor([scale * 1.001])),
    }
    # functions of another PyTorch: none of that name in what they give, or of other arguments
    for other in (lambda *_: None, lambda: None):
        forgotten()
        monkeypatch.setattr(torch._C, "_create_function_from_graph", other)
        assert "does not run this partition" in onednn_attention.why_not(torch.float32)
        monkeypatch.undo()
    for message, (owner, name, wrong) in broken.items():
        forgotten()
        monkeypatch.setattr(owner, name, wrong)
        assert message in onednn_attention.why_not(torch.float32)
        assert torch.equal(attention(*tensors, 0.125), DEFINITION(*tensors, 0.125))
        monkeypatch.undo()
    forgotten()
    monkeypatch.delattr(torch._C, "parse_ir")
    assert "has no torch._C.parse_ir" in onednn_attention.why_not(torch.float32)
    assert "torch.float16" in onednn_attention.why_not(torch.float16)


def test_a_torch_that_rounds_the_scores_is_not_used(monkeypatch, forgotten):
    written = onednn_attention._partition

    def rounded(*arguments) -> str:
        before, behind = written(*arguments).split("%s : ")
        return f"{before}%s : {behind.replace('Float', 'BFloat16', 2)}"

    monkeypatch.setattr(onednn_attention, "_partition", rounded)
    assert "is off by" in onednn_attention.why_not(torch.bfloat16)


def test_what_is_kept_is_bounded(forgotten):
    for N in range(50, 50 + onednn_attention.KEPT + 3):
        attention(*packed(1, N, 1, 8), 0.125)
    assert onednn_attention._build.cache_info().currsize == onednn_attention.KEPT
    attention(*packed(1, 50, 1, 8), 0.125)


def test_dropped_while_another_thread_runs_it(forgotten):
    """As the oldest one is when there are too many."""
    tensors = packed(2, 197)
    expected = attention(*tensors, 0.125)
    done = threading.Event()

    def drop() -> None:
        while not done.is_set():
            onednn_attention._build.cache_clear()
            time.sleep(1e-3)

    def run(_: int) -> bool:
        return all(torch.equal(attention(*tensors, 0.125), expected) for _ in range(30))

    dropper = threading.Thread(target=drop)
    dropper.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            assert all(pool.map(run, range(6)))
    finally:
        done.set()
        dropper.join()
