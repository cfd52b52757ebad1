"""How the GPU program checks and times a kernel: its inputs, its judgement, races, and outputs that are not written."""

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.gpu import candidates, programs, timing
from benchmarks.gpu.ceilings import bare
from benchmarks.gpu.repeated import kernel_row, poisoned_memory
from benchmarks.gpu.setting import FULL, TOY
from vit_fast.workload import MODELS, operations

on_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a toy setting's kernels run interpreted"
)


def test_inputs_go_round_beyond_the_cache():
    assert timing.sets(FULL, 1 << 20) == 192
    assert timing.sets(FULL, 1 << 30) == 1
    assert timing.sets(FULL, 10) == 256


def test_every_input_set_is_launched_and_nothing_else():
    seen = []
    us = timing.in_turn_us(TOY, {"a": [lambda i=i: seen.append(i) for i in range(3)]}, 1.0)
    assert us.keys() == {"a", "again"}
    assert seen == [0, 1, 2] * (len(seen) // 3) and len(seen) >= 12


def test_inputs_are_random_and_fit_their_kernels():
    for model in MODELS.values():
        for o in operations(model, 1):
            assert programs.label(o, "bf16").startswith(o.op)
    a, b = (programs.inputs(TOY, "layer_norm", dict(M=3, N=8), "fp16", seed=s)[0] for s in (0, 1))
    assert a.std() > 0.3 and not torch.equal(a, b)


def test_judge():
    ref = torch.randn(4, 64, dtype=torch.float64)
    baseline = ref.half()
    assert programs.judge(baseline, ref, baseline)["wrong"] == ""
    row = programs.judge(baseline + 0.1, ref, baseline)
    assert row["error"] > row["allowed"] and row["wrong"].startswith("largest error 0.1")
    nan = baseline.clone()
    nan[1, 2] = float("nan")
    assert "isnan differs" in programs.judge(nan, ref, baseline)["wrong"]


@on_cpu
def test_a_broken_kernel_and_a_race_are_seen(monkeypatch):
    arguments = programs.inputs(TOY, "layer_norm", dict(M=5, N=64), "fp16")
    assert not kernel_row(TOY, "layer_norm", arguments)["wrong"]
    kernel, calls = programs.KERNELS["layer_norm"], []

    def race(*args):
        calls.append(args)
        return kernel.launch(*args) + (1e-3 if len(calls) == 2 else 0)

    monkeypatch.setitem(programs.KERNELS, "layer_norm", kernel._replace(launch=race))
    row = kernel_row(TOY, "layer_norm", arguments)
    assert not row["wrong"] and row["runs_differ_by"] > 5e-4 and "differ by" in row["says"]
    broken = kernel._replace(launch=lambda *args: kernel.launch(*args) * 1.01)
    monkeypatch.setitem(programs.KERNELS, "layer_norm", broken)
    assert "allowed" in kernel_row(TOY, "layer_norm", arguments)["wrong"]


@on_cpu
def test_a_gated_layer(monkeypatch):
    """Ours against the definition, and beside it one bare product of both weights."""
    shape = dict(M=5, N=40, K=64, activation="silu")
    arguments = programs.inputs(TOY, "gated", shape, "fp16")
    assert not kernel_row(TOY, "gated", arguments)["wrong"]
    x, gate, up, *_ = arguments
    (product,) = programs.vendor("gated", arguments).values()
    assert torch.equal(product(), torch.cat((x @ gate.T, x @ up.T), 1))
    kernel = programs.KERNELS["gated"]
    swapped = kernel._replace(launch=lambda x, g, u, b, c, a: kernel.launch(x, u, g, c, b, a))
    monkeypatch.setitem(programs.KERNELS, "gated", swapped)
    assert "allowed" in kernel_row(TOY, "gated", arguments)["wrong"]


def test_the_bare_product_of_a_gated_layer_has_no_activation():
    o = next(o for o in operations(MODELS["dinov2-g-14"], 1) if o.op == "gated")
    assert programs.label(o, "bf16") == "gated M257 N4096 K1536 silu bf16"
    assert bare(o, "bf16") == "gated M257 N4096 K1536 bf16"


@on_cpu
def test_an_output_that_is_not_written_is_seen(monkeypatch):
    torch.use_deterministic_algorithms(False)  # memory is not poisoned from outside
    with poisoned_memory():
        assert torch.empty(1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
    kernel = programs.KERNELS["layer_norm"]
    idle = kernel._replace(launch=lambda x, *rest: torch.empty(x.shape, dtype=x.dtype))
    monkeypatch.setitem(programs.KERNELS, "layer_norm", idle)
    arguments = programs.inputs(TOY, "layer_norm", dict(M=5, N=64), "fp16")
    assert "isnan differs" in kernel_row(TOY, "layer_norm", arguments)["wrong"]


@on_cpu
def test_candidates_that_did_not_pass_are_not_timed():
    o = next(o for o in operations(TOY.main, 1) if o.op == "linear")
    choices = {"checks/a": ("a", None), "checks/b": ("b", None)}
    row = candidates.timed(TOY, o, choices, "fp16", passed=("checks/b",))
    assert row["us"].keys() == {"the rule's choice", "b", "again"} and row["gain"] >= 1
