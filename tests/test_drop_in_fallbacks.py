"""Where the fast path does not apply, transformers' own forward answers, bit for bit, and explain() has the reason."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTForImageClassification, ViTModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vit_fast
from models import TINY, images, randomize
from twins import PIXELS, assert_fast, assert_stock, reason, twins

CLASSES = [ViTModel, ViTForImageClassification]


@pytest.fixture
def pair():
    return twins(ViTModel)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_gradient_is_wanted(cls):
    for model in (pair := twins(cls)):
        model.requires_grad_(True)
    stock, fast = pair
    with pytest.warns(UserWarning, match="torch.inference_mode") as caught:
        assert_stock(fast, stock, "a gradient is wanted", PIXELS)
    assert caught[0].filename.endswith("twins.py")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once
        assert_stock(fast, stock, "a gradient is wanted", PIXELS)
    for model in pair:
        model(PIXELS)[0].square().sum().backward()
    for (name, ours), theirs in zip(fast.named_parameters(), stock.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name
    assert_fast(fast, stock, PIXELS)


def test_no_warning_while_training(pair):
    fast = pair[1].requires_grad_(True).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(PIXELS)
    assert "a gradient is wanted" in reason(fast)


def test_a_gradient_of_the_pixels(pair):
    ours, theirs = (PIXELS.clone().requires_grad_() for _ in range(2))
    with pytest.warns(UserWarning, match="a gradient is wanted"):
        pair[1](ours)[0].square().sum().backward()
    pair[0](theirs)[0].square().sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_one_parameter_wants_a_gradient(pair):
    stock, fast = pair
    for model in pair:
        model.layers[1].mlp.fc2.bias.requires_grad_(True)
    with pytest.warns(UserWarning):
        assert_stock(fast, stock, "a gradient is wanted", PIXELS)


def test_a_trained_classifier_on_a_frozen_encoder_is_fast():
    """A linear probe: the gradient does not reach the encoder."""
    for model in (pair := twins(ViTForImageClassification)):
        model.classifier.requires_grad_(True)
        model.train()
    stock, fast = pair
    labels = torch.tensor([0, 3])
    for model in pair:
        model(PIXELS, labels=labels).loss.backward()
    assert reason(fast) == ""
    for name in ("weight", "bias"):
        ours, theirs = (getattr(m.classifier, name).grad for m in (fast, stock))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_frozen_tower_in_train_mode(cls):
    """Without dropout it is fast; with dropout it is not, and not even with one dropout left in training mode."""
    stock, fast = twins(cls)
    fast.train()
    assert_fast(fast, stock, PIXELS)
    stock, fast = twins(cls, hidden_dropout_prob=0.3)
    assert_fast(fast, stock, PIXELS)
    for model in (stock, fast):
        encoder = getattr(model, "vit", model)
        encoder.layers[1].dropout.train()
    for model in (stock, fast):
        torch.manual_seed(0)
        ours = model(PIXELS)
        if model is stock:
            theirs = ours
    assert "drops out 0.3" in reason(fast)
    assert torch.equal(ours[0], theirs[0])
    fast.eval()
    assert_fast(fast, stock.eval(), PIXELS)


def test_attention_dropout_in_training_mode():
    _, fast = twins(ViTModel, attention_probs_dropout_prob=0.2)
    fast.train()(PIXELS)
    assert "ViTAttention drops out 0.2" in reason(fast)


def test_autocast(pair):
    stock, fast = pair
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert_stock(fast, stock, "autocast", PIXELS)
    assert_fast(fast, stock, PIXELS)


@pytest.mark.parametrize("cls", CLASSES)
def test_attention_maps(cls):
    """SDPA returns none, eager attention does."""
    stock, fast = twins(cls)
    for model in (stock, fast):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        assert_stock(fast, stock, "'eager'", PIXELS)
        out = assert_stock(fast, stock, "'eager'", PIXELS, output_attentions=True)
    assert len(out.attentions) == 2
    for model in (stock, fast):
        model.set_attn_implementation("sdpa")
    assert_fast(fast, stock, PIXELS)
    with torch.no_grad():
        assert_stock(fast, stock, "output_attentions", PIXELS, output_attentions=True)


def test_an_attention_function_of_somebody_else(pair, monkeypatch):
    stock, fast = pair
    theirs = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def doubled(*args, **kwargs):
        out, weights = theirs(*args, **kwargs)
        return 2 * out, weights

    assert_fast(fast, stock, PIXELS)
    ALL_ATTENTION_FUNCTIONS.register("doubled", doubled)
    for model in pair:
        model.config._attn_implementation = "doubled"
    with torch.no_grad():
        assert_stock(fast, stock, "'doubled'", PIXELS)


def causal(q_length: int, **kwargs: Any) -> torch.Tensor:
    return torch.ones(q_length, q_length, dtype=torch.bool).tril()[None, None]


def test_a_mask_function_of_somebody_else(pair, monkeypatch):
    """It is called where no mask is given too."""
    stock, fast = pair
    before = assert_fast(fast, stock, PIXELS)[0]
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS, "sdpa", causal)
    with torch.no_grad():
        after = assert_stock(fast, stock, "mask function 'sdpa'", PIXELS)[0]
    assert not torch.allclose(before, after, atol=1e-3)


def test_masks(pair):
    stock, fast = pair
    with torch.no_grad():
        mask = torch.ones(2, 17, dtype=torch.bool)
        mask[0, 9:] = False
        assert_stock(fast, stock, "attention_mask", PIXELS, attention_mask=mask)
    masked = dict(use_mask_token=True)

    stock = randomize(ViTModel(ViTConfig(**TINY), **masked)).eval().requires_grad_(False)
    fast = vit_fast.accelerate(copy.deepcopy(stock))
    some = torch.arange(32).view(2, 16) % 3 == 0
    assert_stock(fast, stock, "bool_masked_pos", PIXELS, bool_masked_pos=some)
    assert_fast(fast, stock, PIXELS)


def test_an_argument_that_is_not_known(pair):
    with torch.no_grad():
        assert_stock(pair[1], pair[0], "is_causal", PIXELS, is_causal=False)


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda m: m(), (AttributeError, ValueError)),
        (lambda m: m(None), (AttributeError, ValueError)),
        (lambda m: m(images(2, 3, 40, 40)), ValueError),
        (lambda m: m(images(2, 1, 32, 32)), (ValueError, RuntimeError)),
        (lambda m: m(images(3, 32, 32)), (ValueError, RuntimeError)),
        (lambda m: m([PIXELS]), AttributeError),
        (lambda m: m(PIXELS[:0]), RuntimeError),
        (lambda m: m(PIXELS.to("meta")), (RuntimeError, NotImplementedError)),
        (lambda m: m(images(2, 3, 4, 4), interpolate_pos_encoding=True), RuntimeError),
    ],
)
def test_errors_are_those_of_transformers(pair, call, error):
    messages = []
    for model in pair:
        with pytest.raises(error) as caught, torch.no_grad():
            call(model)
        messages.append((type(caught.value), str(caught.value)))
    assert messages[0] == messages[1]


def test_hooks_for_all_modules(pair):
    stock, fast = pair
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, out: seen.append(type(m)))
    try:
        with torch.no_grad():
            assert_stock(fast, stock, "hooks for all modules", PIXELS)
    finally:
        handle.remove()
    assert seen.count(nn.LayerNorm) == 2 * 5
    assert_fast(fast, stock, PIXELS)


def test_transformers_recording_hooks_do_not_count(pair):
    """They are put on layers for good by the first call through transformers that asks for hidden states."""
    stock, fast = pair
    with torch.no_grad():
        mask = torch.ones(2, 17, dtype=torch.bool)
        assert_stock(
            fast, stock, "attention_mask", PIXELS, attention_mask=mask, output_hidden_states=True
        )
    assert fast.layers[0]._forward_hooks
    assert_fast(fast, stock, PIXELS, output_hidden_states=True)


def test_counting_operations(pair):
    """A TorchDispatchMode sees transformers' own operations."""
    counts = []
    for model in pair:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(PIXELS)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    assert "TorchDispatchMode" in reason(pair[1])


def test_function_transforms(pair):
    stock, fast = pair
    for model in pair:
        model.requires_grad_(True)
    results = []
    for model in pair:
        parameters = dict(model.named_parameters())

        def loss(parameters, model=model):
            return torch.func.functional_call(model, parameters, (PIXELS,))[0].square().sum()

        results.append(torch.func.grad(loss)(parameters))
    for name, theirs in results[0].items():
        assert torch.equal(results[1][name], theirs), name
    with forward_ad.dual_level(), torch.no_grad():
        assert_stock(fast, stock, "forward-mode", PIXELS)


def test_other_weights_for_one_call(pair):
    """functional_call puts tensors in the parameters' place."""
    stock, fast = pair
    with torch.no_grad():
        other = {name: 1.5 * p for name, p in stock.named_parameters()}
        ours, theirs = (torch.func.functional_call(m, other, (PIXELS,))[0] for m in (fast, stock))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert_fast(fast, stock, PIXELS)


def test_jit_trace(pair):
    stock, fast = pair
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = (
            torch.jit.trace(m, PIXELS, strict=False, check_trace=False)(PIXELS)
            for m in (fast, stock)
        )
    assert "torch.jit" in reason(fast)
    assert torch.equal(ours["last_hidden_state"], theirs["last_hidden_state"])


def test_onednn_turned_off_by_its_switch():
    """PyTorch's operations run, from the next call on, and the reason says so; and back."""
    stock, fast = twins(ViTModel)
    with torch.no_grad():
        assert_fast(fast, stock, PIXELS)
        before = vit_fast.explain(fast)[0].ops
        with torch.backends.mkldnn.flags(enabled=False):
            assert_fast(fast, stock, PIXELS)
            assert vit_fast.explain(fast)[0].ops == "torch"
        assert_fast(fast, stock, PIXELS)
        assert vit_fast.explain(fast)[0].ops == before
