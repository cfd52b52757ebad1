"""DINOv2, without and with registers: sizes of real checkpoints, resized tables, what falls back, what is followed."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import vit_fast
from cases import CASES, Case
from dino import (
    SWIGLU,
    assert_falls_back,
    assert_follows,
    assert_random,
    hook,
    layer,
    pair,
)
from models import images
from test_matrix import check
from twins import PIXELS, assert_fast, assert_same, assert_stock, reason
from vit_fast import ViT

BOTH = ("dinov2", "dinov2 with registers")
# of DINOv2-S, B, L and g, with one layer
REAL = {
    "S": dict(hidden_size=384, num_attention_heads=6),
    "B": dict(hidden_size=768, num_attention_heads=12),
    "L": dict(hidden_size=1024, num_attention_heads=16),
    "g": dict(hidden_size=1536, num_attention_heads=24, **SWIGLU),
}
PATCH_14 = dict(num_hidden_layers=1, patch_size=14, image_size=518)


@pytest.mark.parametrize("size", REAL)
def test_sizes_of_checkpoints(size):
    sizes = {"small": (56, 42)}
    check(Case("Dinov2Model", {**REAL[size], **PATCH_14}, sizes), torch.float32, "small")


def test_swiglu_is_as_wide_as_in_the_giant():
    spec, _ = vit_fast.families.bind(Case("Dinov2Model", {**REAL["g"], **PATCH_14}).model())
    assert (spec.gated, spec.mlp_dim, spec.head_dim) == (True, 4096, 64)


@pytest.mark.parametrize("pixels", [224, 518])
def test_the_table_of_518(pixels):
    sizes = {"one": (pixels, pixels)}
    check(Case("Dinov2Model", {**REAL["S"], **PATCH_14}, sizes), torch.float32, "one")


ODD = {
    "as many patches, another shape": (16, 64),
    "not divisible, as many patches": (35, 35),
    "not divisible, not square": (32, 35),
    "not divisible, other patches": (39, 51),
    "one row": (9, 64),
}


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize("name", BOTH)
def test_images_of_odd_sizes(name, size):
    check(replace(CASES[name], sizes=ODD), torch.float32, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BOTH)
def test_the_resized_table_is_transformers_own(name, dtype):
    stock = CASES[name].model(dtype)
    vit = ViT.from_hf(stock)
    for height, width in [(16, 64), (32, 40), (8, 8), (64, 64), (24, 16), (32, 35)]:
        grid = height // 8, width // 8
        tokens = torch.empty(1, 1 + grid[0] * grid[1], 64)
        theirs = stock.embeddings.interpolate_pos_encoding(tokens, height, width)
        assert torch.equal(vit.patch_positions(grid), theirs[0, 1:]), (height, width)


@pytest.mark.parametrize("name", BOTH)
def test_an_image_without_a_patch_is_for_transformers(name):
    stock, fast = pair(name)
    for model in (stock, fast):
        with pytest.raises(RuntimeError):
            model(images(1, 3, 7, 64))
    assert "hold no patch" in vit_fast.explain(fast)[0].reason


@pytest.mark.parametrize("name", BOTH)
def test_a_table_in_float64_is_rounded_as_transformers_rounds_it(name):
    stock, fast = pair(name, torch.float64)
    for model in (stock, fast):
        model.embeddings.position_embeddings.mul_(1 / 3)
    with torch.no_grad():
        for height, width in [(32, 32), (35, 35), (40, 24)]:
            pixels = images(1, 3, height, width, dtype=torch.float64)
            theirs, ours = stock(pixels)[0], fast(pixels)[0]
            assert reason(fast) == ""
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        pixels = images(1, 3, 32, 35, dtype=torch.float64)
        assert_stock(fast, stock, "rounded to fp32", pixels)


def test_a_table_that_is_not_square_is_for_transformers():
    stock, fast = pair("dinov2", image_size=(16, 64))
    for pixels in (images(1, 3, 16, 64), PIXELS):
        with torch.no_grad():
            assert_stock(fast, stock, "expected a square", pixels)


def attention(layer: nn.Module) -> nn.Module:
    return getattr(layer.attention, "attention", layer.attention)


def own_config(model: nn.Module) -> None:
    model.encoder.config = copy.deepcopy(model.config)
    model.encoder.config.output_hidden_states = True


CHANGES = {
    "hook on layer_scale": (hook(lambda m: layer(m).layer_scale1), "forward hooks"),
    "hook on drop_path": (hook(lambda m: layer(m, 1).drop_path), "forward hooks"),
    "hook on the activation's owner": (hook(lambda m: layer(m, 1).mlp), "forward hooks"),
    "hook on the convolution": (
        hook(lambda m: m.embeddings.patch_embeddings.projection),
        "forward hooks",
    ),
    "another layer_scale": (
        lambda m: setattr(layer(m), "layer_scale2", nn.Identity()),
        "expected exactly Dinov2",
    ),
    "another drop_path": (
        lambda m: setattr(layer(m), "drop_path", nn.Hardtanh(-0.1, 0.1)),
        "drop_path is",
    ),
    "another encoder": (
        lambda m: setattr(m.encoder, "__class__", type("Sub", (type(m.encoder),), {})),
        "expected exactly Dinov2",
    ),
    "another scale": (lambda m: setattr(attention(layer(m)), "scaling", 1.0), "scaling 1.0"),
    "causal": (lambda m: setattr(attention(layer(m)), "is_causal", True), "is_causal True"),
    "interpolation of one's own": (
        lambda m: setattr(
            m.embeddings,
            "interpolate_pos_encoding",
            lambda *a: m.embeddings.position_embeddings * 2,
        ),
        "a method of your own",
    ),
    "patch_size": (
        lambda m: setattr(m.embeddings.patch_embeddings, "patch_size", (4, 4)),
        "of patches (8, 8)",
    ),
    "config.patch_size": (lambda m: setattr(m.config, "patch_size", (8, 8)), "config.patch_size"),
    "config of the encoder": (own_config, "a config of its own"),
}
# those that transformers does not compute with
UNREAD = ("another encoder", "patch_size", "config.patch_size", "config of the encoder")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", BOTH)
def test_changed_modules_fall_back(name, change):
    assert_falls_back(pair(name), *CHANGES[change], changes=change not in UNREAD)


@pytest.mark.parametrize("name", BOTH)
def test_an_interpolation_of_ones_own_on_the_class(name, monkeypatch):
    def patch(model):
        cls = type(model.embeddings)
        monkeypatch.setattr(
            cls, "interpolate_pos_encoding", lambda self, *args: 2 * self.position_embeddings
        )

    assert_falls_back(pair(name), patch, "a method of your own")


@pytest.mark.parametrize("name", BOTH)
def test_calls_that_fall_back(name):
    stock, fast = pair(name)
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[:, ::3] = True
    with torch.no_grad():
        assert_stock(fast, stock, "bool_masked_pos is given", PIXELS, bool_masked_pos=masked)
        assert_fast(fast, stock, PIXELS, bool_masked_pos=None)
        assert_stock(fast, stock, "output_attentions", PIXELS, output_attentions=True)
        for model in (stock, fast):
            model.set_attn_implementation("eager")
        maps = assert_stock(fast, stock, "'eager'", PIXELS, output_attentions=True).attentions
    assert len(maps) == 2


@pytest.mark.parametrize(
    "config",
    [{"drop_path_rate": 0.5}, {"hidden_dropout_prob": 0.5}, {"attention_probs_dropout_prob": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("name", BOTH)
def test_randomness_in_training_mode(name, config):
    stock, fast = models = pair(name, **config)
    assert_fast(fast, stock, PIXELS)
    for model in models:
        model.train()
    assert_random(models, "in training mode")
    for model in models:
        model.eval()
    assert_fast(fast, stock, PIXELS)


PARTS = {
    "drop_path": lambda m: layer(m, 1).drop_path,
    "attention": lambda m: attention(layer(m, 1)),
}


@pytest.mark.parametrize("part", PARTS)
def test_one_part_in_training_mode(part):
    models = pair("dinov2", drop_path_rate=0.5, attention_probs_dropout_prob=0.5)
    assert_fast(models[1], models[0], PIXELS)
    for model in models:
        PARTS[part](model).train()
    assert_random(models, "in training mode")


def test_a_frozen_tower_in_training_mode_is_fast():
    stock, fast = pair("dinov2 with registers")
    assert_fast(fast.train(), stock.train(), PIXELS)


def test_an_activation_that_is_no_name():
    stock, fast = pair("dinov2")
    for model in (stock, fast):
        vars(model.config)["hidden_act"] = nn.GELU()  # past the config's checks
        for i in range(2):
            mlp = layer(model, i).mlp
            setattr(mlp, "activation" if hasattr(mlp, "activation") else "activation_fn", nn.Tanh())
    with torch.no_grad():
        assert_stock(fast, stock, "config.hidden_act is a GELU", PIXELS)


WRITES = {
    "layer_scale1": lambda m: layer(m).layer_scale1.lambda1.mul_(3),
    "layer_scale2": lambda m: layer(m, 1).layer_scale2.lambda1.mul_(-1),
    "class token": lambda m: m.embeddings.cls_token.mul_(2),
    "positions": lambda m: m.embeddings.position_embeddings.mul_(2),
    "registers": lambda m: m.embeddings.register_tokens.mul_(2),
    "another register": lambda m: setattr(
        m.embeddings,
        "register_tokens",
        nn.Parameter(m.embeddings.register_tokens * 2, requires_grad=False),
    ),
}


@pytest.mark.parametrize("write", WRITES)
def test_written_weights_are_followed(write):
    assert_follows(pair("dinov2 with registers"), WRITES[write])


def test_written_weights_of_swiglu_are_followed():
    stock, fast = pair("dinov2 swiglu")
    names = [name for name, _ in layer(stock).mlp.named_parameters()]
    assert len(names) in (4, 6)
    for name in names:
        assert_follows((stock, fast), lambda m, name=name: layer(m).mlp.get_parameter(name).mul_(2))


def test_copied_pickled_and_saved(tmp_path):
    stock, fast = pair("dinov2 with registers")
    assert_fast(fast, stock, PIXELS)
    fast.save_pretrained(tmp_path)
    for again in (
        copy.deepcopy(fast),
        pickle.loads(pickle.dumps(fast)),
        vit_fast.Dinov2WithRegistersModel.from_pretrained(tmp_path).eval().requires_grad_(False),
    ):
        assert_fast(again, stock, PIXELS)
    again = type(stock).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_same(again(PIXELS), stock(PIXELS))


@pytest.mark.parametrize("name", ["dinov2 classifier", "dinov2 with registers classifier"])
def test_the_head_in_the_bare_runtime(name):
    stock = CASES[name].model()
    vit = ViT.from_hf(stock)
    torch.testing.assert_close(vit.features(PIXELS, logits=True).logits, stock(PIXELS).logits)
    stock.config.num_register_tokens = 1
    with pytest.raises(ValueError, match="num_register_tokens"):
        ViT.from_hf(stock)


def test_a_classifier_without_labels():
    assert ViT.from_hf(pair("dinov2 classifier", num_labels=0)[0]).head is None
