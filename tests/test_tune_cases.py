"""What is tuned, of which models; when a candidate's result is right; how many inputs outgrow a cache."""

import pytest
import torch

pytest.importorskip("triton")
from dataclasses import replace

from accuracy import assert_as_accurate
from models import SPEC, hf_model
from vit_fast.cuda_timer import CudaTimer, sets_beyond
from vit_fast.kernels import attention, linear, tables, tuning
from vit_fast.tune_cases import (
    DTYPES,
    LAUNCH,
    Case,
    _poisoned,
    cases_of,
    model_named,
    model_of,
    set_up,
    why_inaccurate,
)
from vit_fast.workload import MODELS

BF16 = [torch.bfloat16]
CPU = torch.device("cpu")


def test_the_operations_of_a_vit():
    cases = cases_of([MODELS["vit-b-16"]], [8], BF16)
    assert [case.name for case in cases[:2]] == [
        "linear M=1576 N=3072 K=768 dtype=bf16 epilogue=gelu",
        "linear_norm M=1576 N=768 K=3072 dtype=bf16",
    ], "what takes most of a forward pass is first"
    shapes = {tuple(case.shape.values()) for case in cases}
    assert shapes == {
        (1576, 2304, 768, "bf16", "bias"),
        (8, 12, 197, 197, 64, "bf16"),
        (1576, 768, 768, "bf16"),
        (1576, 3072, 768, "bf16", "gelu"),
        (1576, 768, 3072, "bf16"),
    }
    for case in cases:
        assert case.shape.keys() == set(tables.FIELDS[case.op])


def test_each_operation_is_measured_once():
    b, l = MODELS["vit-b-16"], MODELS["vit-l-16"]
    assert len(cases_of([b, b], [1, 8], BF16)) == 10
    assert len(cases_of([b, l], [1, 8], DTYPES.values())) == 60
    # the same sizes with another GELU: one operation differs; and one token fewer, which all share
    same = replace(b, activation="quick_gelu")
    assert len(cases_of([b, same], [1], BF16)) == 6


def test_a_gated_layer_is_left_to_its_rule():
    """A table has no entry for it; what is around it is tuned."""
    giant = MODELS["dinov2-g-14"]
    plain, gated = (
        {c.name for c in cases_of([replace(giant, gated=g)], [8], BF16)} for g in (False, True)
    )
    assert plain - gated == {"linear M=2056 N=4096 K=1536 dtype=bf16 epilogue=silu"}
    assert not gated - plain


def test_attention_with_rotary_positions_is_left_to_its_rule():
    """A launch with rope looks into no table."""
    spec = replace(SPEC, positions=False, position_prefix=0, rope_theta=100.0)
    for model in (MODELS["dinov3-b-16"], MODELS["dinov3-7b-16-512"], model_of("mine", spec)):
        assert {case.op for case in cases_of([model], [1], BF16)} == {"linear", "linear_norm"}
    assert "attention" in {case.op for case in cases_of([model_of("mine", SPEC)], [1], BF16)}


def test_models_by_name():
    assert model_named("vit-b-16") is MODELS["vit-b-16"]
    with pytest.raises(ValueError, match="'vit-x' is no known model: expected one of vit-b-16, "):
        model_named("vit-x")
    with pytest.raises(OSError, match="no-such/folder/at all"):
        model_named("no-such/folder/at all")


def test_a_checkpoint_s_own_sizes(tmp_path):
    from transformers import ViTModel

    hf_model(ViTModel, image_size=(32, 48)).save_pretrained(tmp_path / "vit")
    model = model_named(str(tmp_path / "vit"))
    assert (model.tokens, model.patches, model.depth, model.mlp) == (25, 24, 2, 96)
    (attends,) = (c for c in cases_of([model], [3], BF16) if c.op == "attention")
    assert attends.shape == dict(B=3, H=2, Nq=25, N=25, D=32, dtype="bf16")


@pytest.mark.parametrize(
    "changes, why", [(dict(head_dim=160), "head_dim up to 128"), (dict(head_dim=16), "32 wide")]
)
def test_models_that_cannot_be_tuned(changes, why):
    with pytest.raises(ValueError, match=f"'mine' cannot be tuned: .*{why}"):
        model_of("mine", replace(SPEC, **changes))


def spoilt(y):
    """(what was done, the result of it): some of it within the rule."""
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(y.shape, generator=draw)
    yield "nothing", y
    for size in (1e-8, 1e-7, 3e-7, 1e-6, 1e-5, 1e-3):
        yield f"noise of {size}", y + size * noise
        yield f"one row scaled by 1 + {size}", torch.cat((y[:1] * (1 + size), y[1:]))
    yield "a row left out", torch.cat((torch.zeros_like(y[:1]), y[1:]))
    yield "the small channels left out", torch.cat((y[:, :1], torch.zeros_like(y[:, 1:])), 1)


@pytest.mark.parametrize("channel", [1, 1000])
def test_the_rule_is_that_of_the_tests(channel):
    draw = torch.Generator().manual_seed(0)
    reference = torch.randn(40, 32, generator=draw, dtype=torch.float64)
    reference[:, 0] *= channel
    baseline = reference.float() * (1 + 2e-7)
    verdicts = set()
    for what, y in spoilt(baseline):
        why = why_inaccurate(y, reference, baseline)
        verdicts.add(bool(why))
        if why:
            with pytest.raises(AssertionError):
                assert_as_accurate(y, reference, baseline)
        else:
            assert_as_accurate(y, reference, baseline), what
    assert verdicts == {True, False}


def test_a_result_that_is_not_a_number_is_wrong():
    y = torch.ones(2, 3)
    assert why_inaccurate(y * float("nan"), y.double(), y)


@pytest.mark.parametrize("before", [True, False])
def test_new_memory_is_poisoned_and_the_setting_put_back(before):
    torch.use_deterministic_algorithms(before)
    with _poisoned():
        assert torch.empty(3).isnan().all()
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() is before


def test_a_candidate_is_launched_on_poisoned_memory(monkeypatch):
    """Else it may find an earlier candidate's right result where it writes none."""
    seen = []
    launch = LAUNCH["linear"]

    def recorded(*args, gpu, config):
        seen.append(torch.empty(2).isnan().all())
        return launch(*args)

    monkeypatch.setitem(LAUNCH, "linear", recorded)
    torch.use_deterministic_algorithms(False)
    assert set_up(SMALL, CPU, 1).why_wrong(None) == ""
    assert seen == [True]


LINEAR = Case("linear", dict(M=5000, N=24, K=16, dtype="fp32", epilogue="gelu"), "gelu")
NORMED = Case("linear_norm", dict(M=5000, N=24, K=16, dtype="fp32"))
ATTENTION = Case("attention", dict(B=7, H=2, Nq=9, N=9, D=16, dtype="fp16"))


@pytest.mark.parametrize("case", [LINEAR, NORMED, ATTENTION], ids=lambda c: c.op)
def test_inputs(case):
    inputs = set_up(case, CPU, 3)
    assert inputs.sets == 3
    first, second = inputs.operands[:2]
    assert first[0].shape == second[0].shape
    assert not torch.equal(first[0], second[0])
    assert first[0].dtype == case.dtype
    take, some = inputs._some()
    assert take[0] == 0
    assert take[-1] == len(first[0]) - 1
    assert len(take) == len(some[0]) == (4 if case is ATTENTION else 2048)
    nbytes = sum(t.nbytes for t in first if torch.is_tensor(t))
    assert case.nbytes == nbytes


SMALL = replace(LINEAR, shape={**LINEAR.shape, "M": 50})
SMALL_NORMED = replace(NORMED, shape={**NORMED.shape, "M": 50})


@pytest.mark.parametrize("case", [SMALL, SMALL_NORMED, ATTENTION], ids=lambda c: c.op)
def test_the_last_row_counts(case, monkeypatch):
    inputs = set_up(case, CPU, 1)
    launch = LAUNCH[case.op]
    assert inputs.why_wrong(None) == ""
    for number in range(2 if case is SMALL_NORMED else 1):

        def spoilt(*args, gpu, config, number=number):
            y = launch(*args)
            (y[number] if isinstance(y, tuple) else y)[-1] *= 1.1
            return y

        monkeypatch.setitem(LAUNCH, case.op, spoilt)
        assert "error" in inputs.why_wrong(None)


@pytest.mark.parametrize("case", cases_of([MODELS["vit-b-16"]], [1], BF16), ids=lambda c: c.name)
@pytest.mark.parametrize("arch", tuning.KNOWN)
def test_the_kernels_offer_candidates_that_are_configs(case, arch):
    gpu = tuning.KNOWN[arch]
    candidates = case.candidates(gpu)
    module = attention if case.op == "attention" else linear
    assert len(set(candidates)) > 1
    assert all(type(c) is module.Config for c in (case.rule(gpu), *candidates))


@pytest.mark.parametrize(
    "nbytes, cache, free, sets",
    [
        (1 << 20, 50 << 20, 100 << 30, 64),  # 100 are wanted, 64 are the most
        (10 << 20, 50 << 20, 100 << 30, 10),
        (3 << 20, 50 << 20, 100 << 30, 34),
        (1 << 30, 50 << 20, 100 << 30, 2),
        (10 << 20, 50 << 20, 120 << 20, 3),  # a quarter of what is free
        (1 << 30, 50 << 20, 1 << 30, 1),
    ],
)
def test_sets_of_inputs(nbytes, cache, free, sets):
    assert sets_beyond(nbytes, cache, free) == sets


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_timer_tells_a_long_launch_from_a_short_one():
    device = torch.device("cuda", 0)
    timer = CudaTimer(device)
    sets = timer.sets(64 << 20)
    data = [torch.randn(16 << 20, device=device) for _ in range(sets)]
    programs = [lambda i: data[i].sin(), lambda i: data[i][: 1 << 20].sin()]
    long, short = timer(programs, sets, 5)
    assert len(long) == len(short) == 5
    assert min(long) > 4 * max(short) > 0
