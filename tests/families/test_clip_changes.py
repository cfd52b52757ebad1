"""CLIP's vision encoder in others' hands: hooks, other modules, weights that change, copies, files."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    CLIPVisionModel,
)

import vit_fast
from models import images
from test_drop_in_changes import WRITES
from test_drop_in_graphs import assert_replayed, recorded
from towers import pair as twins_of
from twins import PIXELS, assert_fast, assert_stock
from vit_fast.state import state_of


@pytest.fixture
def pair():
    return twins_of("clip")


def test_clip_asked_for_what_is_not_computed_here(pair):
    stock, fast = pair
    with torch.no_grad():
        assert_stock(
            fast, stock, "attention_mask is given", PIXELS, attention_mask=torch.zeros(1, 1, 17, 17)
        )
        assert_stock(fast, stock, "is given", PIXELS, bool_masked_pos=None)
        assert_stock(fast, stock, "output_attentions", PIXELS, output_attentions=True)
        for model in pair:
            model.set_attn_implementation("eager")
        found = assert_stock(fast, stock, "eager", PIXELS, output_attentions=True)
    assert len(found.attentions) == 2


CHILDREN = ("pre_layrnorm", "post_layernorm", "embeddings", "encoder", "encoder.layers.1.mlp")


@pytest.mark.parametrize("name", CHILDREN)
def test_hooks_inside_clip(pair, name):
    """A hook that changes what passes by is part of the model: transformers answers, bit for bit."""
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)

    def doubled(module, args, out):
        return out * 2 if isinstance(out, torch.Tensor) else None

    handles = [m.get_submodule(name).register_forward_hook(doubled) for m in pair]
    with torch.no_grad():
        assert_stock(fast, stock, "has forward hooks", PIXELS)
    for handle in handles:
        handle.remove()
    assert_fast(fast, stock, PIXELS)


def other_eps(m):
    m.post_layernorm.eps = 1e-3


def other_first_eps(m):
    m.pre_layrnorm.eps = 1e-3


def other_class_of_norm(m):
    m.post_layernorm = nn.Identity()


def other_order_of_positions(m):
    m.embeddings.position_ids = m.embeddings.position_ids.flip(1)


def positions_of_bounded_norm(m):
    m.embeddings.position_embedding.max_norm = 0.5


def other_patch_size(m):
    m.embeddings.patch_size = 4


def other_scale(m):
    m.encoder.layers[1].self_attn.scale = 0.5


def causal(m):
    for layer in m.encoder.layers:
        layer.self_attn.is_causal = True


def other_activation(m):
    m.encoder.layers[0].mlp.activation_fn = nn.Tanh()


def an_encoder_of_your_own(m):
    class Encoder(type(m.encoder)):
        def forward(self, inputs_embeds, **kwargs):
            return super().forward(2 * inputs_embeds, **kwargs)

    m.encoder.__class__ = Encoder


CHANGES = {
    other_eps: "different eps",
    other_first_eps: "different eps",
    other_class_of_norm: "expected exactly LayerNorm",
    other_order_of_positions: "position_ids are not",
    positions_of_bounded_norm: "max_norm",
    other_patch_size: "embeddings.patch_size is 4",
    other_scale: "scale 0.5",
    causal: "is_causal",
    other_activation: "expected exactly GELUActivation",
    an_encoder_of_your_own: "expected exactly CLIPEncoder",
}


@pytest.mark.parametrize("change, why", CHANGES.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_changes_inside_clip(pair, change, why):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    for model in pair:
        change(model)
    with torch.no_grad():
        assert_stock(fast, stock, why, PIXELS)


def test_one_eps_for_all_layers():
    """eps is read from the modules, and changed in all of them it is used."""
    stock, fast = pair = twins_of("clip")
    assert_fast(fast, stock, PIXELS)
    before = fast(PIXELS).last_hidden_state
    for model in pair:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 0.1
    after = assert_fast(fast, stock, PIXELS).last_hidden_state
    assert not torch.equal(before, after)


def test_another_method_of_interpolation(pair):
    stock, fast = pair
    for model in pair:
        own = model.embeddings.interpolate_pos_encoding
        model.embeddings.interpolate_pos_encoding = lambda *args, own=own: 2 * own(*args)
    with torch.no_grad():
        why = "by a method of your own"
        assert_stock(fast, stock, why, images(1, 3, 40, 40), interpolate_pos_encoding=True)


# weights that change


@pytest.mark.parametrize("write", WRITES, ids=lambda w: w.__name__)
@pytest.mark.parametrize("graphs", [False, True], ids=["launches", "graphs"])
def test_writes_into_clip(pair, write, graphs):
    stock, fast = pair
    if graphs:
        recorded(fast)
        assert_replayed(fast, stock, PIXELS)
    resized, weights = images(1, 3, 40, 24), copy.deepcopy(stock.state_dict())
    for name, _ in stock.named_parameters():
        for model in pair:
            model.load_state_dict(weights)
        before = assert_fast(fast, stock, PIXELS)
        assert_fast(fast, stock, resized, interpolate_pos_encoding=True)
        for model in pair:
            write(model.get_parameter(name))
        assert_fast(fast, stock, resized, interpolate_pos_encoding=True)
        after = assert_fast(fast, stock, PIXELS)
        for field in ("last_hidden_state", "pooler_output"):
            same = torch.equal(before[field], after[field])
            behind = field == "last_hidden_state" and name.startswith("post_layernorm")
            assert same == behind or name.endswith("k_proj.bias"), (name, field)


def test_graphs_of_clip(pair):
    stock, fast = pair
    recorded(fast)
    for batch in (2, 9, 2):
        pixels = images(batch, 3, 32, 32, seed=batch)
        assert_replayed(fast, stock, pixels)
        assert_replayed(fast, stock, pixels, output_hidden_states=True)
    handles = [m.post_layernorm.register_forward_hook(lambda m, a, out: 2 * out) for m in pair]
    with torch.no_grad():
        assert_stock(fast, stock, "has forward hooks", PIXELS)
    assert vit_fast.explain(fast)[0].graphs == 0
    for handle in handles:
        handle.remove()
    assert_replayed(fast, stock, PIXELS)


@pytest.mark.parametrize("fused", [False, True])
def test_steps_of_an_optimizer_on_clip(pair, fused):
    """A fused step writes without PyTorch's count: it is counted by the parameter itself."""
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    before = fast(PIXELS).last_hidden_state
    for name in ("embeddings.class_embedding", "embeddings.position_embedding.weight"):
        for model in pair:
            p = model.get_parameter(name)
            p.requires_grad_(True)
            p.grad = torch.ones_like(p)
            torch.optim.AdamW([p], lr=0.1, fused=fused).step()
            p.requires_grad_(False)
        after = assert_fast(fast, stock, PIXELS).last_hidden_state
        assert not torch.allclose(before, after, atol=1e-3)
        before = after


@pytest.mark.parametrize(
    "name", ["embeddings.class_embedding", "embeddings.position_embedding.weight"]
)
def test_other_parameters_in_clip(pair, name):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    owner, _, leaf = name.rpartition(".")
    for model in pair:
        new = nn.Parameter(2 * model.get_parameter(name).detach(), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, new)
    assert_fast(fast, stock, PIXELS)
    for model in pair:
        model.get_parameter(name).mul_(-1)
    assert_fast(fast, stock, PIXELS)


# copies and files


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_clip(pair, copied):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    twin = copied(fast)
    assert str(type(twin)) == str(CLIPVisionModel)
    assert_fast(twin, stock, PIXELS)
    twin.embeddings.class_embedding.mul_(2)
    assert_fast(fast, stock, PIXELS)
    with torch.no_grad():
        assert not torch.allclose(twin(PIXELS)[0], fast(PIXELS)[0], atol=1e-3)


def test_clip_saved_and_loaded(pair, tmp_path):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    for model, folder in zip(pair, ("stock", "fast")):
        model.save_pretrained(tmp_path / folder)
    files = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("stock", "fast")]
    assert files[0] == files[1]
    assert fast.state_dict().keys() == stock.state_dict().keys()
    loaded = vit_fast.CLIPVisionModel.from_pretrained(tmp_path / "fast").eval()
    assert_fast(loaded.requires_grad_(False), stock, PIXELS)
    found = vit_fast.accelerate(AutoModel.from_pretrained(tmp_path / "fast").eval())
    assert_fast(found.requires_grad_(False), stock, PIXELS)
    assert state_of(found).fast_calls == 1
