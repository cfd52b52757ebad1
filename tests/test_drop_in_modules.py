"""Modules inside an accelerated model that were changed, hooked or patched: transformers' own forward answers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers import ViTModel

from twins import PIXELS, assert_fast, assert_stock, reason, twins


@pytest.fixture
def pair():
    return twins(ViTModel)


def conv(model: ViTModel) -> nn.Conv2d:
    return model.embeddings.patch_embeddings.projection


def overlapping(model: ViTModel) -> None:
    conv(model).padding = (1, 1)  # of 32 pixels still 4 patches


def subclassed(module: nn.Module) -> None:
    module.__class__ = type("Sub", (type(module),), {})


# what is changed in place, after a fast call: how, and a part of the reason
CHANGES = {
    "hook on an inner module": (
        lambda m: m.layers[0].mlp.register_forward_hook(lambda *a: 2 * a[2]),
        "forward hooks",
    ),
    "pre-hook": (
        lambda m: m.layers[1].attention.o_proj.register_forward_pre_hook(lambda m, a: (2 * a[0],)),
        "forward hooks",
    ),
    "forward on an instance": (
        lambda m: setattr(m.layers[0].mlp, "forward", lambda x: 2 * x),
        "a forward of its own",
    ),
    "another module": (
        lambda m: setattr(m.layers[0], "mlp", nn.Identity()),
        "expected exactly ViTMLP",
    ),
    "another module by the back door": (
        lambda m: m.layers[0]._modules.update(mlp=nn.Identity()),
        "expected exactly ViTMLP",
    ),
    "subclass of Linear": (
        lambda m: setattr(m.layers[1].mlp.fc1, "__class__", type("L", (nn.Linear,), {})),
        "expected exactly Linear",
    ),
    "parametrization": (
        lambda m: nn.utils.parametrizations.weight_norm(m.layers[0].mlp.fc1),
        "expected exactly Linear",
    ),
    "pruning": (
        lambda m: prune.l1_unstructured(m.layers[0].mlp.fc1, "weight", 0.5),
        "forward hooks",
    ),
    "overlapping patches": (overlapping, "stride, padding"),
    "one eps": (lambda m: setattr(m.layers[1].layernorm_after, "eps", 0.5), "different eps"),
    "causal": (lambda m: setattr(m.layers[0].attention, "is_causal", True), "is_causal True"),
    "scaling": (lambda m: setattr(m.layers[0].attention, "scaling", 1.0), "scaling 1.0"),
    "one layer of another dtype": (
        lambda m: m.layers[0].to(torch.float64),
        "torch.float32, torch.float64",
    ),
    "another image size": (lambda m: setattr(m.embeddings, "image_size", (48, 48)), ""),
    "another patch size": (
        lambda m: setattr(m.embeddings, "patch_size", 16),
        "embeddings.patch_size",
    ),
    "other channels": (lambda m: setattr(m.embeddings.patch_embeddings, "num_channels", 1), ""),
    "stride": (lambda m: setattr(conv(m), "stride", (4, 4)), "stride, padding"),
    "dilation": (lambda m: setattr(conv(m), "dilation", (2, 2)), "stride, padding"),
    "groups": (lambda m: setattr(conv(m), "groups", 3), "stride, padding"),
    "no layers": (lambda m: m.layers.__delitem__(slice(None)), "no layers"),
    "the last eps": (lambda m: setattr(m.layernorm, "eps", 0.5), "different eps"),
    "dropout of the embeddings": (
        lambda m: setattr(m.embeddings, "dropout", nn.Tanh()),
        "exactly Dropout",
    ),
    "dropout of a layer": (lambda m: setattr(m.layers[1], "dropout", nn.Tanh()), "exactly Dropout"),
    "subclass of attention": (lambda m: subclassed(m.layers[0].attention), "exactly ViTAttention"),
    "subclass of embeddings": (lambda m: subclassed(m.embeddings), "exactly ViTEmbeddings"),
    "subclass of patches": (
        lambda m: subclassed(m.embeddings.patch_embeddings),
        "exactly ViTPatchEmbeddings",
    ),
    "subclass of LayerNorm": (lambda m: subclassed(m.layernorm), "exactly LayerNorm"),
    "a dynamic quantization": (
        lambda m: torch.ao.quantization.quantize_dynamic(m, {nn.Linear}, inplace=True),
        "expected exactly",
    ),
}


@pytest.mark.parametrize("change, why", CHANGES.values(), ids=CHANGES)
@pytest.mark.filterwarnings("ignore")
def test_changes_of_modules(pair, change, why):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    torch.manual_seed(0)
    for model in pair:
        change(model)
    with torch.no_grad():
        try:
            stock(PIXELS)
        except (RuntimeError, ValueError) as error:  # transformers cannot do it, and so cannot we
            with pytest.raises(type(error)) as caught:
                fast(PIXELS)
            assert str(caught.value) == str(error)
            assert why in reason(fast)
        else:
            assert_stock(fast, stock, why, PIXELS)


def test_a_class_that_is_patched(pair, monkeypatch):
    from transformers.models.vit import modeling_vit

    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    theirs = modeling_vit.ViTMLP.forward
    monkeypatch.setattr(modeling_vit.ViTMLP, "forward", lambda self, x: 2 * theirs(self, x))
    with torch.no_grad():
        assert_stock(fast, stock, "a forward of its own", PIXELS)
    monkeypatch.undo()
    assert_fast(fast, stock, PIXELS)


def test_a_hook_that_is_removed_again(pair):
    stock, fast = pair
    handles = [m.layers[0].register_forward_hook(lambda *a: a[2] + 1) for m in pair]
    with torch.no_grad():
        assert_stock(fast, stock, "forward hooks", PIXELS)
    for handle in handles:
        handle.remove()
    assert_fast(fast, stock, PIXELS)


def test_a_head_of_no_width():
    stock, fast = twins(ViTModel)
    for model in (stock, fast):
        model.layers[1].attention.head_dim = 0
        with torch.no_grad(), pytest.raises(RuntimeError, match="invalid for input of size"):
            model(PIXELS)
    assert "cannot read the model" in reason(fast)


def test_a_config_in_the_place_of_an_equal_one():
    """transformers' configs compare without their attention implementation."""
    stock, fast = twins(ViTModel)
    assert_fast(fast, stock, PIXELS)
    for model in (stock, fast):
        attention = model.layers[1].attention
        attention.config = copy.deepcopy(attention.config)
        attention.config._attn_implementation = "eager"
    assert_stock(fast, stock, "attn_implementation is 'eager'", PIXELS)
