"""A model of cases.py as transformers has it and accelerated, and what the two have to agree on."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import skimage
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import output_capturing

import vit_fast
from cases import CASES, naflex, padded
from models import images
from twins import ATOL, assert_same, reasons

# earlier releases take any number for True, and a list in a way of their own
SELECTS = hasattr(output_capturing, "resolve_hidden_states_indices")
STATES = [True, False, None, 0, 1, -1, -2, 7, [0], [1, -1], (2,), []]
PHOTOGRAPHS = [
    Image.open(Path(skimage.data_dir, name)).convert("RGB")
    for name in ("chelsea.png", "rocket.jpg")
]


GRIDS = [(4, 4), (2, 6), (5, 1), (1, 1), (3, 5)]


def several(grids=GRIDS, length: int = 17, dtype: torch.dtype = torch.float32) -> dict:
    """Images of these grids in one batch of rows, padded with what would be seen."""
    parts = []
    for i, (h, w) in enumerate(grids):
        one = naflex(images(1, 3, 8 * h, 8 * w, seed=i))
        parts.append(padded(one, length - h * w))
    together = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
    return {**together, "pixel_values": together["pixel_values"].to(dtype)}


def pair(name: str, dtype: torch.dtype = torch.float32, **config: Any):
    """(stock, accelerated) of a case with its config changed."""
    case = CASES[name]
    stock = replace(case, config={**case.config, **config}).model(dtype)
    return stock, vit_fast.accelerate(copy.deepcopy(stock))


def tower(model: nn.Module) -> PreTrainedModel:
    return getattr(model, "vision_model", model)


def agree(fast: nn.Module, stock: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The call runs on the engine, and the answer is that of `stock`."""
    return agree_in(lambda m: m(*args, **kwargs), fast, stock)


def agree_in(call: Callable[[Any], Any], fast: nn.Module, stock: nn.Module) -> Any:
    with torch.no_grad():
        ours, theirs = call(fast), call(stock)
    assert reasons(fast) == []
    assert_same(ours, theirs, ATOL[next(stock.parameters()).dtype])
    return ours


def left(fast: nn.Module, stock: nn.Module, why: str, *args: Any, **kwargs: Any) -> None:
    """The call runs through transformers' own forward, bit for bit or with its error; `why` is part of the reason."""
    with torch.no_grad():
        ours, theirs = (_outcome(m, args, kwargs) for m in (fast, stock))
    found = reasons(fast)
    assert len(found) == 1 and why in found[0], found
    assert_same(ours, theirs)


def _outcome(model: nn.Module, args: tuple, kwargs: dict) -> Any:
    try:
        return model(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def states_agree(fast: nn.Module, stock: nn.Module, asked: Any, *args: Any, **kwargs: Any) -> None:
    call = dict(kwargs, output_hidden_states=asked)
    if SELECTS or not isinstance(asked, (list, tuple)) or not asked:
        agree(fast, stock, *args, **call)
    else:
        left(fast, stock, "output_hidden_states", *args, **call)


def other_masks(*args: Any, **kwargs: Any) -> None:
    """A mask function that masks nothing."""


@torch.no_grad()
def put(module: nn.Module, **attributes: Any) -> None:
    """Sets attributes, in a lambda."""
    for name, value in attributes.items():
        setattr(module, name, value)
