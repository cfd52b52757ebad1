"""accelerate, restore, explain: what they find, what they say, what they do when called again."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import (
    ViTForImageClassification,
    ViTModel,
)

import vit_fast
from models import TINY, hf_model
from twins import PIXELS, assert_fast, assert_same, assert_stock, reason, twins
from vit_fast.state import state_of


def test_nothing_to_do():
    for model in (nn.Linear(2, 2), object(), {"a": 1}):
        with pytest.warns(UserWarning, match="found nothing to do"):
            assert vit_fast.accelerate(model) is model
    assert len(vit_fast.explain(nn.Linear(2, 2))) == 0
    assert "no vision encoder" in str(vit_fast.explain(object()))


def test_other_models_are_named():
    from transformers import BeitConfig, BeitModel

    model = nn.ModuleDict(
        {
            "beit": BeitModel(BeitConfig(**{k: TINY[k] for k in TINY if k != "num_labels"})),
            "vit": hf_model(ViTModel),
        }
    )
    model["vit"].set_attn_implementation("sdpa")
    vit_fast.accelerate(model)
    found = {encoder.name: encoder for encoder in vit_fast.explain(model)}
    assert found["vit"].fast
    assert not found["beit"].fast
    assert "not a supported encoder" in found["beit"].reason
    assert "beit: BeitModel, NOT fast" in str(vit_fast.explain(model))


def test_accelerated_twice_and_from_inside_out():
    """The outermost supported module answers, whatever came first."""
    stock, fast = twins(ViTForImageClassification)
    state = state_of(fast)
    assert vit_fast.accelerate(fast) is fast
    assert state_of(fast) is state
    vit_fast.restore(fast)
    vit_fast.accelerate(fast.vit)
    assert [e.name for e in vit_fast.explain(fast.vit)] == [""]
    with torch.no_grad():
        assert_same(fast(PIXELS), stock(PIXELS), 2e-5)
    assert reason(fast.vit) == ""
    vit_fast.accelerate(fast)
    assert type(fast.vit) is ViTModel
    assert_fast(fast, stock, PIXELS)
    vit_fast.accelerate(fast.vit)
    assert_fast(fast, stock, PIXELS)


def test_an_encoder_of_two_models():
    """Called by itself, and inside another one."""
    stock = twins(ViTForImageClassification)[0]
    model = copy.deepcopy(nn.ModuleDict({"encoder": stock.vit, "classifier": stock}))
    for _ in range(2):
        vit_fast.accelerate(model)
        for name, theirs in (("encoder", stock.vit), ("classifier", stock)):
            assert_fast(model[name], theirs, PIXELS)
        assert all(found.fast for found in vit_fast.explain(model))
    vit_fast.restore(model)
    assert type(model["encoder"]) is ViTModel
    assert type(model["classifier"]) is ViTForImageClassification


def test_a_wrong_argument():
    with pytest.raises(ValueError, match="cpu must be one of auto, plain, got 'fast'"):
        vit_fast.accelerate(hf_model(ViTModel), cpu="fast")


def test_explanations_are_values():
    stock, fast = twins(ViTModel)
    (before,) = vit_fast.explain(stock)
    assert (before.fast, before.reason) == (False, "not accelerated: call vit_fast.accelerate")
    (ready,) = vit_fast.explain(fast)
    assert (ready.fast, ready.fast_calls, ready.reason) == (True, 0, "")
    mask = torch.ones(2, 17, dtype=torch.bool)
    with torch.no_grad():
        assert_stock(fast, stock, "attention_mask", PIXELS, attention_mask=mask)
    (fell,) = vit_fast.explain(fast)
    assert (fell.fast, fell.reason) == (False, "attention_mask is given")
    assert "why not: attention_mask is given" in str(vit_fast.explain(fast))
    assert_fast(fast, stock, PIXELS)
    (now,) = vit_fast.explain(fast)
    assert (now.fast, now.reason, now.last_reason) == (True, "", "attention_mask is given")
    assert (now.fast_calls, now.other_calls) == (1, 1)
    assert now.ops == state_of(fast).bound.ops.name
    assert now.nbytes > 0
    assert json.dumps(vars(now))
    assert "1 calls fast, 1 through transformers" in str(now)
