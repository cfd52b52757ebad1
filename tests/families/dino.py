"""What the tests of DINOv2, DINOv3 and their backbones share."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

import vit_fast
from cases import CASES
from twins import PIXELS, assert_fast, assert_same, assert_stock, reason

Pair = tuple[PreTrainedModel, PreTrainedModel]
SWIGLU = {"use_swiglu_ffn": True}


def pair(name: str, dtype: torch.dtype = torch.float32, **config: Any) -> Pair:
    """(stock, accelerated) of a case, with more of its config."""
    case = CASES[name]
    stock = replace(case, config={**case.config, **config}).model(dtype)
    return stock, vit_fast.accelerate(copy.deepcopy(stock))


def layer(model: PreTrainedModel, i: int = 0) -> nn.Module:
    return (model.encoder if hasattr(model, "encoder") else model.model).layer[i]


def hook(find: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], Any]:
    return lambda m: find(m).register_forward_hook(lambda m, args, y: 2 * y)


def first(output: Any) -> torch.Tensor:
    """last_hidden_state, or the first feature map."""
    return output[0] if torch.is_tensor(output[0]) else output[0][0]


def assert_falls_back(
    models: Pair, change: Callable[[nn.Module], Any], why: str, changes: bool = True
) -> None:
    """After a fast call `change` is made to both models, and transformers' own forward answers.

    changes: the change is one of the result.
    """
    stock, fast = models
    with torch.no_grad():
        before = first(assert_fast(fast, stock, PIXELS))
        for model in models:
            change(model)
        after = first(assert_stock(fast, stock, why, PIXELS))
    assert changes != torch.allclose(after, before, atol=1e-3)


def assert_follows(models: Pair, change: Callable[[nn.Module], Any]) -> None:
    """After a fast call `change` is made to both models, and the next call is fast and right."""
    stock, fast = models
    before = first(assert_fast(fast, stock, PIXELS))
    with torch.no_grad():
        for model in models:
            change(model)
    after = first(assert_fast(fast, stock, PIXELS))
    assert not torch.allclose(after, before, atol=1e-3)


def assert_random(models: Pair, why: str) -> None:
    """Transformers' own forward answers, with the same random numbers."""
    with torch.no_grad():
        outputs = []
        for model in models:
            torch.manual_seed(0)
            outputs.append(model(PIXELS))
    assert why in reason(models[1]), reason(models[1])
    assert_same(*outputs)
