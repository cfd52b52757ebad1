"""torch.compile and torch.export of an accelerated model: one graph, of transformers' own operations."""

import pytest
import torch
from transformers import (
    ViTModel,
)

from twins import PIXELS, assert_fast, assert_same, twins


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torch_compile(pair, backend):
    """One graph, of transformers' own operations, also after calls that ran fast."""
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True, backend=backend)
        assert_same(compiled(PIXELS), stock(PIXELS), 2e-5)
        for model in pair:  # seen by the compiled graph, since it is transformers' own
            model.requires_grad_(False)
            next(model.parameters()).mul_(2)
        assert_same(compiled(PIXELS), stock(PIXELS), 2e-5)
    assert_fast(fast, stock, PIXELS)


def test_compiled_with_an_adapter_put_in_afterwards():
    peft = pytest.importorskip("peft")
    stock, fast = twins(ViTModel)
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True, backend="eager")
        compiled(PIXELS)
        for model in (stock, fast):
            torch.manual_seed(0)
            peft.inject_adapter_in_model(
                peft.LoraConfig(r=4, target_modules=["fc1"], init_lora_weights=False), model
            )
        torch.compiler.reset()
        assert_same(compiled(PIXELS), stock(PIXELS), 1e-6)


def test_torch_compile_of_a_part():
    """The model is called from compiled code."""
    stock, fast = twins(ViTModel)
    step = torch.compile(
        lambda m, x: m(x).last_hidden_state * 2, fullgraph=True, backend="aot_eager"
    )
    with torch.no_grad():
        torch.testing.assert_close(
            step(fast, PIXELS), 2 * stock(PIXELS).last_hidden_state, rtol=0, atol=4e-5
        )


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export(pair, strict):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    with torch.no_grad():
        program = torch.export.export(fast, (PIXELS,), strict=strict)
        assert_same(program.module()(PIXELS)[0], stock(PIXELS)[0], 2e-5)
    assert set(program.state_dict) == set(stock.state_dict())
    assert_fast(fast, stock, PIXELS)
