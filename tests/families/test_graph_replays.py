"""Accelerated models of every kind of answer replay graphs: all outputs, rows and inputs; right after each write."""

import copy

import pytest
import torch
from torch import Tensor

import vit_fast
from cases import CASES
from recorder import SoftwareRecorder
from twins import assert_same, reasons
from vit_fast.state import KEY, State

# pooled by attention, by a norm, by two rows; no final norm; rotary positions; gates; rows of patches; padded images
NAMES = (
    "deit with teacher",
    "ijepa classifier",
    "dinov2 classifier",
    "dinov2 backbone",
    "dinov3 gated",
    "dinov3 backbone",
    "clip projection",
    "siglip classifier",
    "siglip2",
    "idefics2",
)
STATES = {"output_hidden_states": True}


def recorded(model) -> State:
    """Accelerated, on PyTorch's operations, which the software recorder can record."""
    vit_fast.accelerate(model, cpu="plain")
    (state,) = (vars(m)[KEY] for m in model.modules() if KEY in vars(m))
    state.forget()
    state.recorder = SoftwareRecorder
    return state


def recorder_of(state: State) -> SoftwareRecorder:
    return state.bound.engine._graphs._recorder


@pytest.fixture(params=NAMES)
def case(request):
    return CASES[request.param]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def calls(case) -> list[dict]:
    """Images of two sizes in two batches, all fields of the output and fewer."""
    sizes = [(size, batch) for size in ("native", "not square") for batch in (2, 5)]
    return [{**case.inputs(*at), **asked} for at in sizes for asked in ({}, STATES)]


def test_every_call(case):
    stock = case.model()
    fast = copy.deepcopy(stock)
    state = recorded(fast)
    for inputs in calls(case):
        expected = stock(**inputs)
        for _ in range(3):
            if state.bound is not None:
                state.bound.engine.capture_now()
            assert_same(fast(**inputs), expected, 2e-5)
            assert not reasons(fast)
        before = recorder_of(state).replays
        # other pixels in the same graph
        inputs = {
            k: -0.5 * v if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in inputs.items()
        }
        assert_same(fast(**inputs), stock(**inputs), 2e-5)
        assert recorder_of(state).replays == before + 1
    report = state.bound.engine.graph_report()
    assert report.count == recorder_of(state).records and not report.refused


def test_written_weights(case):
    stock = case.model()
    fast = copy.deepcopy(stock)
    state, inputs = recorded(fast), case.inputs("not square")
    assert_same(fast(**inputs), stock(**inputs), 2e-5)
    fast(**inputs)
    records = recorder_of(state).records
    for name in list(dict(stock.named_parameters()))[::2]:
        for model in (stock, fast):
            model.get_parameter(name).mul_(1.25)
        for _ in range(2):
            assert_same(fast(**inputs), stock(**inputs), 1e-4)
            assert not reasons(fast), name
    before = recorder_of(state).replays
    assert_same(fast(**inputs), stock(**inputs), 1e-4)
    assert recorder_of(state).replays == before + 1
    assert recorder_of(state).records == records
