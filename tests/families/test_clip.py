"""CLIP's vision encoder: what it has that others have not, in every form that transformers' callers ask for."""

import copy
import pickle

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AutoModel,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from transformers.utils import output_capturing

import vit_fast
from accuracy import assert_as_accurate
from cases import CASES, CLIP_TEXT, TEXTS, Case
from models import TINY, images, in_float64
from test_drop_in_changes import WRITES
from test_drop_in_graphs import assert_replayed, recorded
from twins import PIXELS, assert_fast, assert_same, assert_stock, reason, reasons
from vit_fast import ViT
from vit_fast.state import state_of

NEW = hasattr(output_capturing, "resolve_hidden_states_indices")  # transformers >= 5.2x
HOLDERS = ("clip projection", "clip classifier", "clip with text")


def twins_of(case: Case, dtype: torch.dtype = torch.float32):
    """(stock, accelerated), frozen."""
    stock = case.model(dtype)
    return stock, vit_fast.accelerate(copy.deepcopy(stock))


@pytest.fixture
def pair():
    return twins_of(CASES["clip"])


# what is returned


@pytest.mark.parametrize(
    "form",
    [
        {},
        *(dict(output_hidden_states=asked) for asked in (True, False, None, 0, 1, -1, -2, 7)),
        *(dict(return_dict=asked) for asked in (True, False, None, 0)),
        dict(return_dict=False, output_hidden_states=True),
        dict(output_attentions=False),
        dict(interpolate_pos_encoding=True),
        dict(attention_mask=None),
    ],
    ids=str,
)
def test_clip_forms(form):
    stock, fast = twins_of(CASES["clip"])
    assert_fast(fast, stock, PIXELS, **form)
    assert_fast(fast, stock, pixel_values=PIXELS, **form)


@pytest.mark.parametrize("asked", [[-2], [0, 2], (1, -1), []], ids=str)
def test_clip_hidden_states_by_number(pair, asked):
    """What select_hidden_states of transformers 5.23 passes on for a VLM; earlier ones have their own reading."""
    stock, fast = pair
    if NEW or not asked:
        assert_fast(fast, stock, PIXELS, output_hidden_states=asked)
    else:
        assert_stock(fast, stock, "output_hidden_states", PIXELS, output_hidden_states=asked)


def test_what_llava_takes(pair):
    stock, fast = pair
    with torch.inference_mode():
        theirs, ours = (m(PIXELS, output_hidden_states=True) for m in pair)
        exact = in_float64(stock)(PIXELS.double(), output_hidden_states=True)
    assert len(ours.hidden_states) == 3
    for layer in (0, -1, -2):
        states = [x.hidden_states[layer][:, 1:] for x in (ours, exact, theirs)]
        assert_as_accurate(*states)
    # the last one is not normalized, and what is pooled is
    assert torch.equal(ours.hidden_states[-1], ours.last_hidden_state)
    normed = fast.post_layernorm(ours.last_hidden_state[:, 0])
    torch.testing.assert_close(ours.pooler_output, normed, rtol=0, atol=2e-5)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("patch, heads", [(14, 2), (16, 1), (32, 4)])
def test_clip_activations_and_sizes(act, patch, heads):
    config = {"patch_size": patch, "image_size": 3 * patch, "hidden_act": act}
    stock, fast = twins_of(Case("CLIPVisionModel", {**config, "num_attention_heads": heads}))
    assert_fast(fast, stock, images(1, 3, 3 * patch, 3 * patch))


@pytest.mark.parametrize("head_dim", [64, 80, 88, 104])
def test_clip_head_dims(head_dim):
    config = {"hidden_size": 2 * head_dim, "num_hidden_layers": 1}
    stock, fast = twins_of(Case("CLIPVisionModel", config))
    assert_fast(fast, stock, PIXELS)


@pytest.mark.parametrize("size", [(64, 64), (40, 72), (35, 50), (32, 33), (16, 64)], ids=str)
def test_clip_other_sizes(pair, size):
    stock, fast = pair
    pixels = images(2, 3, *size)
    assert_fast(fast, stock, pixels, interpolate_pos_encoding=True)
    for model in pair:
        with pytest.raises(ValueError, match="doesn't match model"):
            model(pixels)
    assert "for a model of 32 x 32" in reason(fast)


def test_clip_one_channel():
    stock, fast = twins_of(Case("CLIPVisionModel", {"num_channels": 1, "num_hidden_layers": 1}))
    assert_fast(fast, stock, images(2, 1, 32, 32))


# models that hold one


def features(model: nn.Module, **asked) -> torch.Tensor:
    return model.get_image_features(PIXELS, **asked)


@pytest.mark.parametrize("asked", [{}, {"output_hidden_states": True}, {"return_dict": False}])
def test_clip_with_text(asked):
    stock, fast = twins_of(CASES["clip with text"])
    asked_of_all = {"input_ids": TEXTS, "pixel_values": PIXELS, **asked}
    with torch.inference_mode():
        theirs, ours = stock(**asked_of_all), fast(**asked_of_all)
        assert_same(ours, theirs, 2e-5)
        assert_same(features(fast, **asked), features(stock, **asked), 2e-5)
    if "return_dict" not in asked:
        assert ours.logits_per_image.shape == (2, 3)
    (found,) = vit_fast.explain(fast)
    assert (found.name, found.fast_calls, found.other_calls) == ("vision_model", 2, 0)


@pytest.mark.parametrize("name", HOLDERS)
def test_models_around_clip_are_stock(name, tmp_path):
    """Their class, their files; the encoder inside is the one that is accelerated."""
    stock, fast = twins_of(CASES[name])
    assert type(fast) is type(stock)
    assert [e.name for e in vit_fast.explain(fast)] == ["vision_model"]
    for model, folder in ((stock, "stock"), (fast, "fast")):
        model.save_pretrained(tmp_path / folder)
    files = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("stock", "fast")]
    assert files[0] == files[1]
    again = getattr(vit_fast, type(stock).__name__).from_pretrained(tmp_path / "fast").eval()
    assert type(again) is type(stock)
    with torch.inference_mode():
        assert_same(
            again(**CASES[name].inputs("native")), stock(**CASES[name].inputs("native")), 2e-5
        )
    assert not reasons(again)
    vit_fast.restore(fast)
    assert type(fast.vision_model) is CLIPVisionModel


@pytest.mark.parametrize("name", ("clip", *HOLDERS))
def test_clip_into_the_bare_runtime(name, tmp_path):
    """ViT of each class, and of its folder: tokens, pooled, and what its head makes of them."""
    stock = CASES[name].model()
    stock.save_pretrained(tmp_path)
    inputs = CASES[name].inputs("native")
    with torch.inference_mode():
        theirs = stock(**inputs)
        encoder = stock if name == "clip" else stock.vision_model
        whole = encoder(PIXELS)
        head = {
            CLIPVisionModel: lambda: None,
            CLIPVisionModelWithProjection: lambda: theirs.image_embeds,
            CLIPModel: lambda: stock.get_image_features(PIXELS).pooler_output,
            CLIPForImageClassification: lambda: theirs.logits,
        }[type(stock)]()
        for vit in (ViT.from_hf(stock), ViT.from_pretrained(tmp_path)):
            found = vit.features(inputs["pixel_values"], pooled=True, logits=head is not None)
            torch.testing.assert_close(found.tokens, whole.last_hidden_state, rtol=0, atol=2e-5)
            torch.testing.assert_close(found.pooled, whole.pooler_output, rtol=0, atol=2e-5)
            assert (vit.head is None) == (head is None)
            if head is not None:
                torch.testing.assert_close(found.logits, head, rtol=0, atol=2e-5)
                alone = vit.features(inputs["pixel_values"], tokens=False, logits=True)
                torch.testing.assert_close(alone.logits, head, rtol=0, atol=2e-5)
            assert (vit.head is None or vit.head.bias is None) == ("classifier" not in name)


def test_a_clip_file_of_old(tmp_path):
    """Before transformers 5 the keys began with vision_model, and the position ids were saved."""
    from safetensors.torch import load_file, save_file

    stock = CASES["clip"].model()
    stock.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    now = {key.removeprefix("vision_model."): t for key, t in load_file(file).items()}
    old = {f"vision_model.{key}": t for key, t in now.items()}
    old["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(old, file, metadata={"format": "pt"})
    with torch.inference_mode():
        expected = stock(PIXELS).last_hidden_state
        loaded = ViT.from_pretrained(tmp_path)(PIXELS)
        fast = vit_fast.CLIPVisionModel.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded, expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(fast(PIXELS).last_hidden_state, expected, rtol=0, atol=2e-5)
    assert reason(fast) == ""


@pytest.mark.parametrize("name", ["AltCLIP", "ChineseCLIP", "MetaClip2", "XCLIP", "CLIPSeg"])
def test_others_that_are_called_clip(name):
    """They have classes of their own, and explain names them."""
    vision = {k: v for k, v in TINY.items() if k != "num_labels"}
    if name == "XCLIP":
        vision |= dict(mit_hidden_size=32, mit_num_attention_heads=2, mit_intermediate_size=48)
    cls = getattr(transformers, f"{name}Model")
    model = cls(cls.config_class(text_config=CLIP_TEXT, vision_config=vision)).eval()
    with pytest.warns(UserWarning, match="found nothing to do"):
        vit_fast.accelerate(model)
    (found,) = vit_fast.explain(model)
    assert found.name == "vision_model"
    assert "not a supported encoder" in found.reason


# what falls back


def test_clip_asked_for_what_is_not_computed_here(pair):
    stock, fast = pair
    with torch.no_grad():
        assert_stock(
            fast, stock, "attention_mask is given", PIXELS, attention_mask=torch.zeros(1, 1, 17, 17)
        )
        assert_stock(fast, stock, "is given", PIXELS, bool_masked_pos=None)
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
    stock, fast = pair = twins_of(Case("CLIPVisionModel"))
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
