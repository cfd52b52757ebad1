"""The registry: cases that all front ends share."""

import pytest

from benchmarks import registry, subjects
from benchmarks.case import Case
from benchmarks.operation import GIVEN
from benchmarks.registry import JOINED, OPERATIONS, OTHER_OPERATIONS, SUITES, cases
from benchmarks.results import LAYERS
from benchmarks.rivals import RIVALS
from vit_fast.workload import operations

ALL = {
    (suite, device): list(SUITES[suite](device)) for suite in SUITES for device in ("cpu", "cuda")
}
EVERY = [case for found in ALL.values() for case in found]


@pytest.mark.parametrize("of", ALL, ids="-".join)
def test_names_are_unique(of):
    names = [case.name for case in ALL[of]]
    assert names and len(set(names)) == len(names)


def test_what_a_case_names_exists():
    for case in EVERY:
        assert case.layer in LAYERS
        assert set(case.programs) <= set(RIVALS)
        assert case.baseline == case.programs[0] and not RIVALS[case.baseline].ours
        assert len(set(case.programs)) == len(case.programs)
        if case.layer in ("model", "ablation"):
            assert case.what in case.of.classes and case.what in subjects.FIELDS
        if case.layer == "end to end":
            given, output = case.what.split(" to ")
            assert (
                given in ("jpeg", "uint8")
                and output in case.of.classes
                and output in subjects.FIELDS
            )
        if case.layer == "operation":
            assert case.what in (*OPERATIONS, *JOINED) and case.operation.name == case.what
            assert case.operation.op in GIVEN


def test_every_layer_and_every_rival_has_a_case():
    assert {case.layer for case in ALL["full", "cpu"]} == set(LAYERS)
    assert {case.layer for case in ALL["quick", "cpu"]} == set(LAYERS)
    assert {case.layer for case in ALL["gpu", "cuda"]} == set(LAYERS)
    used = {program for case in EVERY for program in case.programs}
    assert used == set(RIVALS)


def test_what_the_issue_of_a_table_is():
    """All rivals of a CPU on three models, in both dtypes, one image and eight."""
    asked = {
        (subject, dtype, batch)
        for subject in ("vit-b-16", "siglip-b-16", "dinov2-b-14")
        for dtype in ("fp32", "bf16")
        for batch in (1, 8)
    }
    found = {
        (case.subject, case.dtype, case.batch): case
        for case in ALL["full", "cpu"]
        if case.layer == "model" and case.what == "tokens" and case.batch <= 8
    }
    assert set(found) == asked
    for case in found.values():
        assert set(case.programs) == {*registry.CPU_RIVALS, *registry.OURS}


def test_end_to_end_is_asked_for_in_every_way():
    """Logits and embeddings of the families that people search with, from files and from bytes."""
    asked = {(c.subject, c.what) for c in EVERY if c.layer == "end to end"}
    assert asked >= {
        ("vit-b-16", "jpeg to logits"),
        ("vit-b-16", "uint8 to logits"),
        ("siglip-b-16", "jpeg to pooled"),
        ("siglip-b-16", "uint8 to pooled"),
        ("dinov2-b-14", "jpeg to pooled"),
        ("clip-b-16", "jpeg to embedding"),
    }


def test_flops_are_those_of_the_operations():
    whole = Case("model", "vit-b-16", "tokens", "fp32", 2, ("PyTorch",))
    ops = list(operations(whole.of.model, 2, 4))
    assert whole.flops == sum(o.flops * o.count for o in ops)
    assert whole.flops == pytest.approx(2 * 35.1e9, rel=0.01)
    assert whole.bytes is None and whole.count is None
    parts = [Case("operation", "vit-b-16", o, "fp32", 2, ("PyTorch",)) for o in OPERATIONS]
    assert sum((part.flops or 0) * part.count for part in parts) == whole.flops
    block = Case("block", "vit-b-16", "block", "fp32", 2, ("PyTorch",))
    patches = next(o for o in ops if o.op == "patch_embed")
    assert block.flops == pytest.approx((whole.flops - patches.flops) / 12)
    norm = Case("operation", "vit-b-16", "layer_norm", "fp32", 2, ("PyTorch",))
    assert norm.flops is None and norm.bytes == 4 * (2 * 2 * 197 * 768 + 2 * 768)
    assert Case("cold start", "vit-b-16", "first answer", "fp32", 1, ("PyTorch",)).flops is None


def test_a_linear_layer_with_the_norm_behind_it():
    """Read x, weights and residual once, write the sum and its normalized rows once; not a call of its own."""
    M, N, K = 2 * 197, 768, 3072
    joined = Case("operation", "vit-b-16", "fc2, layer_norm", "fp32", 2, ("PyTorch",))
    assert joined.bytes == 4 * (M * K + N * K + N + M * N + 2 * M * N + 2 * N)
    assert joined.flops == 2 * M * N * K and joined.count is None
    assert joined.operation.op == "linear_norm"


def test_every_kind_of_operation_has_a_case():
    for of in (("full", "cpu"), ("gpu", "cuda")):
        found = [case for case in ALL[of] if case.layer == "operation"]
        assert {case.operation.op for case in found} == set(GIVEN)
        others = {case.subject: case for case in found if case.subject in OTHER_OPERATIONS}
        assert set(others) == set(OTHER_OPERATIONS)
        assert others["dinov3-b-16"].of.model.rope
        assert others["dinov2-g-14"].operation.op == "gated"


def test_scenarios_are_those_of_mlperf():
    one, many = (Case("model", "toy", "tokens", "fp32", b, ("PyTorch",)) for b in (1, 2))
    assert (one.scenario, many.scenario) == ("single stream", "offline")


def test_cases_are_chosen_by_name():
    found = cases("quick", "cpu", ("QKV", "cold start"))
    assert [case.what for case in found] == ["qkv", "first answer"]


@pytest.mark.parametrize(
    "of, words",
    [
        (("slow", "cpu"), "no suite 'slow', expected one of quick"),
        (("gpu", "cpu"), "the suite gpu is for CUDA"),
        (("quick", "cpu", ("nothing",)), "--only nothing: no such case; the first of"),
    ],
)
def test_a_wrong_choice_says_what_there_is(of, words):
    with pytest.raises(ValueError, match=words):
        cases(*of)


def test_a_subject_has_the_sizes_that_are_counted():
    """FLOPs are counted for a Model, timed is a model of transformers."""
    for key, subject in subjects.SUBJECTS.items():
        for cls in set(subject.classes.values()):
            config = {**subjects.sizes(subject.model, cls), **subject.config}
            assert config["hidden_size"] == subject.model.dim, (key, cls)
            assert config["num_hidden_layers"] == subject.model.depth
            assert config["patch_size"] == subject.model.patch


@pytest.mark.parametrize("output, shape", [("tokens", (2, 17, 64)), ("logits", (2, 1000))])
def test_a_model_is_random_where_transformers_is_not(output, shape):
    model = subjects.make("toy", output)
    again = subjects.make("toy", output)
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert p.equal(q)  # the same at each run
        assert len(p.unique()) > p.numel() / 2, name
    answer = model(**subjects.inputs("toy", 2))
    assert getattr(answer, subjects.FIELDS[output]).shape == shape
