"""A case measured: each layer on a toy, rivals that are not there, programs that are wrong."""

import copy
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from benchmarks import prepared as preparing
from benchmarks import tasks
from benchmarks.case import Case
from benchmarks.measured import measure
from benchmarks.method import Method
from benchmarks.prepared import prepare
from benchmarks.registry import JOINED, cases, operation_cases
from benchmarks.results import NUMBERS
from benchmarks.rivals import RIVALS
from benchmarks.task import Program, Task, Unavailable, judge

CPU = torch.device("cpu")
FEW = Method(seconds=0.0, least_rounds=2, pause_ms=0.0)
PEAKS = {"fp32": {"measured_tflops": 0.5, "nominal_tflops": None}, "copy_gbps": 10.0}
TOY = [c for c in cases("toy", "cpu") if not (c.layer == "model" and c.batch == 2)]
TOY += operation_cases("toy", "fp32", 1, names=("patch_embed", "attention", "fc1", "fc2", *JOINED))


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: rivals are timed as they are."""


@pytest.mark.parametrize("case", TOY, ids=lambda c: c.name)
def test_every_layer_is_right_and_timed(case):
    if case.layer == "end to end":
        pytest.importorskip("skimage")
    found = measure(case, CPU, FEW, PEAKS)
    assert [r["status"] for r in found["rows"]] == ["ok"] * len(found["rows"])
    assert any(r["ours"] for r in found["rows"])
    for row in found["rows"]:
        assert set(NUMBERS) <= set(row)
        assert row["accuracy"]["error"] <= row["accuracy"]["allowed"]
        assert len(row["samples_ms"]) >= 2 and row["p50_ms"] > 0 and row["speed_up"] > 0
        assert row["launches"] > 0
    assert found["rows"][0]["program"] == found["baseline"]
    assert found["rows"][0]["speed_up"] == 1.0
    assert found["drift"] is not None


def task_of(module: nn.Module, ours: Program) -> Task:
    x = torch.randn(3, 8)
    sdpa = partial(copy.deepcopy, module)
    return Task(torch.float32, CPU, module, (x,), sdpa, {"vit-fast": lambda: ours})


@pytest.fixture
def linear(monkeypatch):
    """A task of one linear layer, as the case that is measured; ours is `factor` times right."""
    module, made = nn.Linear(8, 8), {}

    def task(case: Case, device: torch.device) -> Task:
        twin = nn.Linear(8, 8)
        twin.load_state_dict({k: v * made["factor"] for k, v in module.state_dict().items()})
        return task_of(module, Program(twin))

    monkeypatch.setitem(tasks.TASKS, "block", task)
    return made


CASE = Case("block", "toy", "block", "fp32", 1, ("transformers, eager", "vit-fast"))


def test_ours_is_not_timed_where_it_is_wrong(linear):
    linear["factor"] = 1.0
    assert [r["status"] for r in measure(CASE, CPU, FEW, PEAKS)["rows"]] == ["ok", "ok"]
    linear["factor"] = 1.001
    first, ours = measure(CASE, CPU, FEW, PEAKS)["rows"]
    assert first["status"] == "ok" and first["p50_ms"]
    assert ours["status"] == "wrong" and "allowed" in ours["why"]
    assert ours["p50_ms"] is None and ours["samples_ms"] == []


@pytest.fixture
def prepared(monkeypatch):
    """prepared(answer): the row of OpenVINO, whose call gives answer(the right result)."""

    def prepared(answer):
        module = nn.Linear(8, 8)
        task = task_of(module, Program(module))
        program = Program(lambda x: answer(module(x)))
        monkeypatch.setitem(
            RIVALS, "OpenVINO", replace(RIVALS["OpenVINO"], build=lambda task: program)
        )
        with torch.inference_mode():
            return prepare("OpenVINO", task, task.reference(), module(*task.inputs))

    return prepared


def test_an_inaccurate_rival_is_timed_and_says_so(prepared):
    found = prepared(lambda y: y * 1.001)
    assert found.row["status"] == "inaccurate" and "allowed" in found.row["why"]
    assert found.program is not None


@pytest.mark.parametrize(
    "answer",
    [lambda y: y[:, :4], lambda y: y.half(), lambda y: y * float("nan")],
    ids=["another shape", "another dtype", "not finite"],
)
def test_what_cannot_be_judged_is_not_timed(prepared, answer):
    found = prepared(answer)
    assert found.row["status"] == "failed" and found.row["why"]
    assert found.program is None


def test_a_rival_that_raises_is_a_row_with_the_reason(prepared):
    def broken(y):
        raise RuntimeError("no such kernel\nat line 3")

    found = prepared(broken)
    assert found.row["status"] == "failed" and found.row["why"] == "RuntimeError: no such kernel"


def test_an_answer_that_was_kept_is_none(prepared):
    kept = []
    found = prepared(lambda y: kept[0] if kept else kept.append(y.clone()) or y)
    assert found.row["status"] == "failed" and "same answer for other inputs" in found.row["why"]
    assert found.program is None


def test_inputs_are_negated_where_they_lie_and_back_again():
    x, n = torch.randn(3), torch.arange(3)
    before = x.clone()
    with pytest.raises(ValueError), preparing.negated((x, n, [b"jpeg"])) as some:
        assert some and x.equal(-before) and n.equal(torch.arange(3))
        raise ValueError
    assert x.equal(before)
    with preparing.negated((n, [b"jpeg"])) as some:
        assert not some


def test_a_device_that_is_lost_ends_the_run_and_names_the_program(prepared, monkeypatch):
    def lost(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(preparing, "wait", lost)
    with pytest.raises(RuntimeError, match="OpenVINO: .*illegal.*: the device does not answer"):
        prepared(lambda y: y)


def test_a_rival_that_fails_when_it_is_timed_is_a_row_with_the_reason(linear, monkeypatch):
    linear["factor"], calls = 1.0, []

    def build(task: Task) -> Program:
        def call(x):
            calls.append(1)
            if len(calls) > 8:
                raise torch.OutOfMemoryError("no memory is left")
            return task.module(x)

        return Program(call)

    monkeypatch.setitem(RIVALS, "OpenVINO", replace(RIVALS["OpenVINO"], build=build))
    case = replace(CASE, programs=("transformers, eager", "OpenVINO", "vit-fast"))
    first, rival, ours = measure(case, CPU, FEW, PEAKS)["rows"]
    assert first["status"] == ours["status"] == "ok" and ours["speed_up"] > 0
    assert rival["status"] == "failed" and "no memory is left" in rival["why"]
    assert rival["p50_ms"] is None and rival["accuracy"] is not None


def test_a_task_without_memory_is_a_case_without_times(monkeypatch):
    def task(case: Case, device: torch.device) -> Task:
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setitem(tasks.TASKS, "block", task)
    found = measure(CASE, CPU, FEW, PEAKS)
    assert [r["status"] for r in found["rows"]] == ["skipped", "skipped"]
    assert found["rows"][0]["why"] == "OutOfMemoryError: no memory is left"


def test_models_are_made_outside_inference_mode_and_called_in_it(linear, monkeypatch):
    linear["factor"], modes = 1.0, []
    made = tasks.TASKS["block"]

    def task(case: Case, device: torch.device) -> Task:
        modes.append(("task", torch.is_inference_mode_enabled()))
        return made(case, device)

    def build(task: Task) -> Program:
        modes.append(("build", torch.is_inference_mode_enabled()))
        twin = copy.deepcopy(task.module)
        assert not any(p.is_inference() for p in twin.parameters())

        def call(x):
            modes.append(("call", torch.is_inference_mode_enabled()))
            return twin(x)

        return Program(call)

    monkeypatch.setitem(tasks.TASKS, "block", task)
    monkeypatch.setitem(RIVALS, "OpenVINO", replace(RIVALS["OpenVINO"], build=build))
    case = replace(CASE, programs=("transformers, eager", "OpenVINO"))
    assert [r["status"] for r in measure(case, CPU, FEW, PEAKS)["rows"]] == ["ok", "ok"]
    assert set(modes) == {("task", False), ("build", False), ("call", True)}


def test_without_a_baseline_nothing_is_judged(linear, monkeypatch):
    linear["factor"] = 1.0

    def broken(task):
        raise Unavailable("not today")

    monkeypatch.setitem(RIVALS, CASE.baseline, replace(RIVALS[CASE.baseline], build=broken))
    found = measure(CASE, CPU, FEW, PEAKS)
    assert [r["status"] for r in found["rows"]] == ["skipped", "skipped"]
    assert "the baseline, transformers, eager, gave nothing" in found["rows"][1]["why"]
    assert found["drift"] is None and found["disturbed"] == ""


def test_the_drop_in_is_on_its_fast_path_or_it_fails():
    case = Case("model", "toy", "tokens", "fp32", 1, ("transformers, eager", "vit-fast"))
    with torch.inference_mode():
        task = tasks.TASKS["model"](case, CPU)
        task.ours["vit-fast"]().call(*task.inputs)
        # transformers' own forward would be timed under our name
        task.module.hf.layers[0].mlp.register_forward_hook(lambda *args: None)
        with pytest.raises(RuntimeError, match="not on the fast path: .*hook"):
            task.ours["vit-fast"]().call(*task.inputs)


def test_the_drop_in_is_on_its_fast_path_end_to_end_too():
    pytest.importorskip("skimage")
    programs = ("transformers, eager", "vit-fast")
    case = Case("end to end", "toy", "uint8 to logits", "fp32", 1, programs)
    with torch.inference_mode():
        task = tasks.TASKS["end to end"](case, CPU)
        task.ours["vit-fast"]().call(*task.inputs)
        task.module.hf.vit.layers[0].mlp.register_forward_hook(lambda *args: None)
        with pytest.raises(RuntimeError, match="not on the fast path: .*hook"):
            task.ours["vit-fast"]().call(*task.inputs)


def test_the_rule_is_that_of_the_tests():
    ref = torch.randn(4, 8, dtype=torch.float64)
    baseline = ref.float()
    accuracy, wrong = judge(baseline, ref, baseline)
    assert wrong == "" and accuracy["error"] <= accuracy["allowed"]
    far = baseline + 1e-3
    assert "largest error" in judge(far, ref, baseline)[1]
    assert judge(far[:2], ref, baseline)[0] is None


def test_steps_end_at_the_whole_table():
    case = Case("ablation", "toy", "tokens", "fp32", 1, ("transformers, eager",))
    found = tasks.steps_of(case, CPU)
    assert found[0][0] == "ViT, PyTorch operations"
    target = tasks.table(CPU, torch.float32, 32)
    last = found[-1][1]
    assert replace(last, name="") == replace(target, name="")
    assert len({name for name, _ in found}) == len(found)
    for (_, before), (name, after) in pairwise(found):
        field = name.removeprefix("+ ")
        assert getattr(after, field) is getattr(target, field) is not getattr(before, field)
