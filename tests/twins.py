"""A stock model of transformers and its accelerated copy, and what they have to agree on."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

import vit_fast
from models import hf_model, images
from vit_fast.state import state_of

ATOL = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 0.125}
PIXELS = images(2, 3, 32, 32)


def twins(cls: type[PreTrainedModel], dtype: torch.dtype = torch.float32, **config: Any):
    """(stock, accelerated), frozen, the same weights, in eval mode, with SDPA attention."""
    stock = hf_model(cls, dtype, **config).requires_grad_(False)
    stock.set_attn_implementation("sdpa")
    return stock, vit_fast.accelerate(copy.deepcopy(stock))


def reason(model: nn.Module) -> str:
    """Why the last call did not run fast, or "". The call must have been noted."""
    state = state_of(model)
    assert state.last_was_fast is not None, "never called"
    return "" if state.last_was_fast else state.last_reason


def reasons(model: nn.Module) -> list[str]:
    """Why the encoders inside did not run fast at their last call."""
    return [found.reason for found in vit_fast.explain(model) if not found.fast]


def fields_of(output: ModelOutput) -> list[str]:
    """Names of all its fields, None or not."""
    return list(vars(output))


def assert_same(ours: Any, theirs: Any, atol: float = 0.0) -> None:
    """Same type, same keys, same values to `atol`."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, Tensor):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    elif isinstance(theirs, ModelOutput):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key], atol)
        assert vars(ours).keys() == vars(theirs).keys()
    elif isinstance(theirs, (tuple, list)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            assert_same(a, b, atol)
    else:
        assert ours == theirs


def assert_fast(model: nn.Module, stock: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The call runs on the engine, and the answer is that of `stock`."""
    with torch.no_grad():
        theirs, ours = stock(*args, **kwargs), model(*args, **kwargs)
    assert reason(model) == ""
    first = next(stock.parameters())
    assert_same(ours, theirs, ATOL[first.dtype])
    return ours


def assert_stock(model: nn.Module, stock: nn.Module, why: str, *args: Any, **kwargs: Any) -> Any:
    """The call runs through transformers' own forward, bit for bit, and `why` is part of the reason."""
    theirs, ours = stock(*args, **kwargs), model(*args, **kwargs)
    assert why in reason(model), reason(model)
    assert_same(ours, theirs)
    return ours
