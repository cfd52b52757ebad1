"""DINOv3: sizes of real checkpoints, live frequencies, what falls back, what is followed."""

import copy
import pickle

import pytest
import torch
from torch import nn

import vit_fast
from accuracy import assert_as_accurate
from cases import Case
from dino import assert_falls_back, assert_follows, assert_random, hook, layer, pair
from models import images, in_float64
from test_matrix import check
from twins import PIXELS, assert_fast, assert_stock, reason
from vit_fast import ViT

REGISTERS = dict(num_register_tokens=4, num_hidden_layers=1, patch_size=16, image_size=224)
GATED = dict(use_gated_mlp=True, hidden_act="silu")
# of DINOv3-S, B, L, H+ and, narrower, 7B, with one layer
REAL = {
    "S": dict(hidden_size=384, num_attention_heads=6, intermediate_size=1536),
    "B": dict(hidden_size=768, num_attention_heads=12, intermediate_size=3072),
    "L": dict(hidden_size=1024, num_attention_heads=16, intermediate_size=4096),
    "H+": dict(hidden_size=1280, num_attention_heads=20, intermediate_size=5120, **GATED),
    "7B": dict(hidden_size=256, num_attention_heads=2, intermediate_size=512, **GATED)
    | dict(query_bias=False, value_bias=False),
}


@pytest.mark.parametrize("size", REAL)
def test_sizes_of_checkpoints(size):
    sizes = {"small": (64, 50)}
    case = Case("DINOv3ViTModel", {**REGISTERS, **REAL[size]}, sizes)
    check(case, torch.float32, "small")


def test_patches_of_a_whole_image():
    case = Case("DINOv3ViTModel", {**REGISTERS, **REAL["S"]}, {"whole": (224, 224)})
    check(case, torch.float32, "whole", batch=4)


@pytest.mark.parametrize("size", [(35, 35), (16, 64), (9, 15), (39, 51)])
def test_images_of_odd_sizes(size):
    stock, fast = pair("dinov3")
    assert_fast(fast, stock, images(2, 3, *size))


def freqs(model: nn.Module) -> torch.Tensor:
    return model.rope_embeddings.inv_freq


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_frequencies_that_were_cast(dtype):
    """.to(dtype) rounds the buffer, and a model loaded in `dtype` may keep it in fp32."""
    stock, fast = pair("dinov3", dtype)
    assert freqs(fast).dtype == dtype
    rounded = assert_fast(fast, stock, PIXELS)[0]
    whole = pair("dinov3")[0].rope_embeddings.inv_freq
    for model in (stock, fast):
        model.rope_embeddings.inv_freq = whole.clone()
    after = fast(PIXELS)[0]
    assert reason(fast) == ""
    assert not torch.equal(after, rounded)
    reference = in_float64(stock)
    reference.rope_embeddings.inv_freq = whole.double()
    with torch.no_grad():
        ref = reference(PIXELS.double())[0]
        assert_as_accurate(after, ref, stock(PIXELS)[0])


WRITES = {
    "frequencies": lambda m: freqs(m).mul_(1.5),
    "other frequencies": lambda m: setattr(m.rope_embeddings, "inv_freq", freqs(m) * 0.5),
    "layer_scale1": lambda m: layer(m).layer_scale1.lambda1.mul_(3),
    "layer_scale2": lambda m: layer(m, 1).layer_scale2.lambda1.mul_(-1),
    "registers": lambda m: m.embeddings.register_tokens.mul_(3),
    "query bias": lambda m: layer(m).attention.q_proj.bias.add_(1),
    "value bias": lambda m: layer(m).attention.v_proj.bias.add_(1),
    "gate": lambda m: layer(m).mlp.gate_proj.weight.mul_(2),
    "up": lambda m: layer(m).mlp.up_proj.bias.mul_(2),
}


@pytest.mark.parametrize("write", WRITES)
def test_written_weights_are_followed(write):
    assert_follows(pair("dinov3 gated"), WRITES[write])


def test_a_missing_bias_of_k_beside_others():
    stock, fast = pair("dinov3")
    attention = layer(stock).attention
    assert attention.k_proj.bias is None
    assert attention.q_proj.bias.abs().min() > 0
    spec, sources = vit_fast.families.bind(stock)
    _, k, _ = sources["blocks.0.attn.qkv.bias"]
    assert spec.qkv_bias
    assert not k.any()
    assert_fast(fast, stock, PIXELS)


def own_config(model: nn.Module) -> None:
    model.rope_embeddings.config = copy.deepcopy(model.config)
    model.rope_embeddings.config.pos_embed_rescale = 3.0


CHANGES = {
    "hook on layer_scale": (hook(lambda m: layer(m).layer_scale1), "forward hooks"),
    "hook on the encoder": (
        lambda m: m.model.register_forward_pre_hook(lambda m, a: (2 * a[0], *a[1:])),
        "forward hooks",
    ),
    "hook on rope_embeddings": (
        lambda m: m.rope_embeddings.register_forward_hook(lambda m, a, y: (y[1], y[0])),
        "forward hooks",
    ),
    "another drop_path": (
        lambda m: setattr(layer(m), "drop_path", nn.Hardtanh(-0.1, 0.1)),
        "drop_path is",
    ),
    "another layer_scale": (
        lambda m: setattr(layer(m), "layer_scale2", nn.Identity()),
        "expected exactly DINOv3",
    ),
    "another activation": (
        lambda m: setattr(layer(m).mlp, "act_fn", nn.Tanh()),
        "expected exactly SiLU",
    ),
    "another scale": (lambda m: setattr(layer(m).attention, "scaling", 1.0), "scaling 1.0"),
    "frequencies that are no buffer": (
        lambda m: (
            m.rope_embeddings._buffers.pop("inv_freq"),
            setattr(m.rope_embeddings, "inv_freq", torch.ones(8)),
        ),
        "is not a buffer",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_modules_fall_back(change):
    assert_falls_back(pair("dinov3 gated"), *CHANGES[change])


def test_a_config_of_the_positions_own():
    # read in training mode alone
    assert_falls_back(pair("dinov3"), own_config, "a config of its own", changes=False)


def test_calls_that_fall_back():
    stock, fast = pair("dinov3")
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[:, ::3] = True
    with torch.no_grad():
        assert_stock(fast, stock, "bool_masked_pos is given", PIXELS, bool_masked_pos=masked)
        for model in (stock, fast):
            model.config.num_register_tokens = 3  # no forward of the model reads it
        assert_stock(fast, stock, "num_register_tokens is 3", PIXELS)
        for model in (stock, fast):
            model.config.num_register_tokens = 4
        assert_stock(fast, stock, "output_attentions", PIXELS, output_attentions=True)
        for model in (stock, fast):
            model.set_attn_implementation("eager")
        maps = assert_stock(fast, stock, "'eager'", PIXELS, output_attentions=True).attentions
    assert len(maps) == 2


@pytest.mark.parametrize("name", ["pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"])
def test_random_positions_in_training_mode(name):
    stock, fast = models = pair("dinov3", pos_embed_rescale=None)
    for model in models:
        model.train()
    assert_fast(fast, stock, PIXELS)
    for model in models:
        setattr(model.config, name, 1.5)
    assert_random(models, f"drawn at random in training mode, config.{name}")
    for model in models:
        model.eval()
    assert_fast(fast, stock, PIXELS)


@pytest.mark.parametrize("config", [{"drop_path_rate": 0.5}, {"attention_dropout": 0.5}], ids=str)
def test_randomness_in_training_mode(config):
    models = pair("dinov3", pos_embed_rescale=None, **config)
    for model in models:
        model.train()
    assert_random(models, "in training mode")


@pytest.mark.parametrize("part", ["drop_path", "attention"])
def test_one_part_in_training_mode(part):
    models = pair("dinov3", drop_path_rate=0.5, attention_dropout=0.5)
    assert_fast(models[1], models[0], PIXELS)
    for model in models:
        getattr(layer(model, 1), part).train()
    assert_random(models, "in training mode")


def test_copied_pickled_and_saved(tmp_path):
    stock, fast = pair("dinov3 gated")
    assert_fast(fast, stock, PIXELS)
    fast.save_pretrained(tmp_path)
    for again in (
        copy.deepcopy(fast),
        pickle.loads(pickle.dumps(fast)),
        vit_fast.DINOv3ViTModel.from_pretrained(tmp_path).eval().requires_grad_(False),
        vit_fast.accelerate(type(stock).from_pretrained(tmp_path).eval().requires_grad_(False)),
    ):
        assert_fast(again, stock, PIXELS)
    with torch.inference_mode():
        torch.testing.assert_close(ViT.from_pretrained(tmp_path)(PIXELS), stock(PIXELS)[0])


@pytest.mark.parametrize("empty", [True, False], ids=["to_empty", "assign"])
def test_frequencies_of_a_runtime_made_on_the_meta_device(empty):
    """No state dict has them, and uninitialised memory would pass for them."""
    vit = ViT.from_hf(pair("dinov3")[0])
    with torch.device("meta"):
        again = ViT(vit.spec)
    if empty:
        again.to_empty(device="cpu").rope_freqs.fill_(float("nan"))
    again.load_state_dict(vit.state_dict(), assign=not empty)
    with torch.inference_mode():
        torch.testing.assert_close(again(PIXELS), vit(PIXELS))
    again = copy.deepcopy(pickle.loads(pickle.dumps(again)))
    for dtype in (torch.float64, torch.bfloat16):
        cast = copy.deepcopy(vit).to(dtype)
        again.to(dtype).load_state_dict(cast.state_dict())
        assert again.rope_freqs.dtype == dtype and torch.equal(again.rope_freqs, cast.rope_freqs)
