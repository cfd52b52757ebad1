"""Cases of single operations compute what they are named after, by every table and rival."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import subjects
from benchmarks.case import Case
from benchmarks.measured import prepared_programs
from benchmarks.operation import EPS, operation
from benchmarks.registry import CPU_OPERATIONS
from benchmarks.subjects import Subject
from benchmarks.task import judge
from vit_fast.workload import Model

CPU = torch.device("cpu")
TOYS = {
    "toy": subjects.SUBJECTS["toy"],
    "toy rope": Subject(Model("Rope", 32, 8, 64, 2, 2, 128, prefix=5, rope=True), {}),
    "toy gated": Subject(Model("Gated", 32, 8, 64, 2, 2, 96, "silu", gated=True), {}),
    # packed in two
    "toy wide gated": Subject(Model("Wide", 32, 8, 1152, 2, 18, 96, "silu", gated=True), {}),
    "toy masked": Subject(Model("Masked", 256, 16, 64, 2, 2, 128, prefix=0), {}, inputs=subjects.naflex),
}  # fmt: skip
EVERY = [
    ("toy", "patch_embed"),
    ("toy", "layer_norm"),
    ("toy", "qkv"),
    ("toy", "attention"),
    ("toy", "fc1"),
    ("toy", "fc2"),
    ("toy", "proj, layer_norm"),
    ("toy rope", "attention"),
    ("toy gated", "fc1"),
    ("toy wide gated", "fc1"),
    ("toy masked", "attention"),
]


# exporting one takes seconds
RIVALS_HAVE = [e if e[0] == "toy rope" else pytest.param(*e, marks=pytest.mark.slow) for e in EVERY]


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setattr(subjects, "SUBJECTS", TOYS)
    monkeypatch.setattr("benchmarks.case.SUBJECTS", TOYS)


def case(subject: str, what: str, dtype: str = "fp32", programs=("PyTorch", "vit-fast")) -> Case:
    return Case("operation", subject, what, dtype, 2, programs)


def turned(x: Tensor, rope: Tensor) -> Tensor:
    """As complex numbers, lane i and lane i + D / 2."""
    pairs = torch.complex(*x.chunk(2, dim=-1)) * torch.complex(*rope)[None, :, None]
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def expected(subject: str, what: str, w: dict[str, Tensor], *inputs: Tensor) -> Tensor:
    x = inputs[0]
    match what:
        case "patch_embed":
            y = F.conv2d(x, w["weight"].view(64, 3, 8, 8), w["bias"], stride=8)
            y = y.flatten(2).mT + w["pos"]
            return torch.cat((w["prefix"].expand(len(x), -1, -1), y), 1)
        case "layer_norm":
            return F.layer_norm(x, (64,), w["weight"], w["bias"], EPS)
        case "qkv":
            return x @ w["weight"].mT + w["bias"]
        case "fc1" if "gate" in w:
            return F.silu(x @ w["gate"].mT + w["gate_bias"]) * (x @ w["up"].mT + w["up_bias"])
        case "fc1":
            return F.gelu(x @ w["weight"].mT + w["bias"])
        case "fc2":
            return inputs[1] + x @ w["weight"].mT + w["bias"]
        case "proj, layer_norm":
            y = inputs[1] + x @ w["weight"].mT + w["bias"]
            return F.layer_norm(y, (64,), w["norm_weight"], w["norm_bias"], EPS)
    q, k, v = inputs
    if "rope" in w:
        q, k = (torch.cat((t[:, :5], turned(t[:, 5:], w["rope"])), 1) for t in (q, k))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 32**0.5
    if "mask" in w:
        scores = scores.masked_fill(~w["mask"][:, None, None], float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)


@pytest.mark.parametrize("subject, what", EVERY)
def test_it_is_what_it_is_named_after(subject, what):
    task = operation(case(subject, what), CPU)
    weights = {n: b.double() if b.is_floating_point() else b for n, b in task.module.named_buffers()}  # fmt: skip
    inputs = task.inputs_in(torch.float64)
    assert ("rope" in weights, "mask" in weights) == ("rope" in subject, "masked" in subject)
    torch.testing.assert_close(task.reference(), expected(subject, what, weights, *inputs))


def test_a_mask_leaves_keys_out():
    task = operation(case("toy masked", "attention"), CPU)
    (mask,) = task.module.buffers()
    assert mask.dtype == torch.bool and mask.shape == (2, 256)
    assert mask.any(1).all() and not mask.all()


def test_angles_are_fp32_whatever_the_dtype():
    task = operation(case("toy rope", "attention", "bf16"), CPU)
    (rope,) = task.module.buffers()
    assert rope.dtype == torch.float32 and task.inputs[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("subject, what", EVERY)
def test_ours_is_right(subject, what, dtype):
    task = operation(case(subject, what, dtype), CPU)
    with torch.inference_mode():
        y = task.ours["vit-fast"]().call(*task.inputs)
        accuracy, wrong = judge(y, task.reference(), task.module(*task.inputs))
    assert accuracy and not wrong, wrong


@pytest.mark.parametrize("subject, what", RIVALS_HAVE)
def test_rivals_compute_it_too(subject, what):
    """Those that are installed."""
    programs = ("PyTorch", *(p for p in CPU_OPERATIONS["fp32"] if p != "torch.compile"), "vit-fast")
    of = case(subject, what, programs=programs)
    with torch.inference_mode():
        prepared = prepared_programs(programs, operation(of, CPU), lambda words: None)
    for row in (p.row for p in prepared):
        assert row["status"] == "ok" or "is not installed" in row["why"], (row["program"], row["why"])  # fmt: skip
