"""Backbones: feature maps and hidden states as transformers gives them, and no block behind the last that is read."""

import copy
import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    PreTrainedConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import vit_fast
from dino import assert_falls_back, assert_follows, hook, layer, pair
from models import TINY, images, randomize
from recorder import SoftwareRecorder
from twins import ATOL, PIXELS, assert_fast, assert_same, assert_stock, reasons
from vit_fast import state, torch_ops
from vit_fast.state import state_of

NAMES = ("dinov2 backbone", "dinov2 with registers backbone", "dinov3 backbone")
each = pytest.mark.parametrize("name", NAMES)


def same_layout(ours: object, theirs: object) -> None:
    """Strides too."""
    if isinstance(theirs, (tuple, list)):
        for a, b in zip(ours, theirs, strict=True):
            same_layout(a, b)
    elif theirs is not None:
        assert ours.stride() == theirs.stride()


def compare(models: tuple, pixels: torch.Tensor = PIXELS, **asked: object) -> None:
    """Fast and the same, in fields, layouts and what is no field."""
    stock, fast = models
    with torch.no_grad():
        theirs = stock(pixels, **asked)
    ours = assert_fast(fast, stock, pixels, **asked)
    if type(theirs) is tuple:
        return
    for key in theirs:
        same_layout(ours[key], theirs[key])
    assert hasattr(ours, "last_hidden_state") == hasattr(theirs, "last_hidden_state")
    if hasattr(theirs, "last_hidden_state"):
        assert_same(ours.last_hidden_state, theirs.last_hidden_state, ATOL[torch.float32])


@each
def test_everything_that_a_config_says_of_the_maps(name):
    """Read at each call: the live config is changed."""
    models = pair(name)
    for norm, reshape, token in itertools.product((True, False), repeat=3):
        for model in models:
            model.config.apply_layernorm = norm
            model.config.reshape_hidden_states = reshape
            model.config.return_class_token = token
        compare(models)
        compare(models, output_hidden_states=True)


@each
def test_stages(name):
    models = pair(name, num_hidden_layers=3)
    for indices in ([0], [3], [1, 3], [-2], [0, 1, 2, 3]):
        for model in models:
            model.out_indices = indices
        compare(models)
    for features in (["stem", "stage2"], ["stage1"]):
        for model in models:
            model.out_features = features
        compare(models)
        compare(models, output_hidden_states=[1])


ASKED = [None, False, True, 0, 1, 2, -1, [0, 2], [-1], [2, 7], (1,), {0}, []]


@pytest.mark.parametrize("asked", ASKED, ids=str)
@each
def test_hidden_states(name, asked):
    models = pair(name)
    compare(models, output_hidden_states=asked)
    compare(models, output_hidden_states=asked, return_dict=False)


@each
def test_what_the_config_says_of_a_call(name):
    models = pair(name)
    for model in models:
        model.config.output_hidden_states = True
    compare(models)
    compare(models, output_hidden_states=False)
    compare(models, return_dict=None)


@pytest.mark.parametrize("size", [(16, 64), (35, 35), (32, 35), (39, 51), (8, 8)])
@each
def test_images_of_odd_sizes(name, size):
    models = pair(name)
    compare(models, images(2, 3, *size), output_hidden_states=True)


@each
def test_no_block_behind_the_last_stage(name, monkeypatch):
    counts, plain = Counter(), torch_ops()

    def counted(kind):
        def op(*args, **kwargs):
            counts[kind] += 1
            return getattr(plain, kind)(*args, **kwargs)

        return op

    ops = replace(plain, attention=counted("attention"), layer_norm=counted("layer_norm"))
    monkeypatch.setattr(state, "choose_ops", lambda *args: (ops, "in a test"))
    models = pair(name, num_hidden_layers=4)
    for indices, blocks in (([1, 2], 2), ([0], 0), ([3], 3), ([0, 4], 4), ([-2], 3)):
        for model in models:
            model.out_indices = indices
        counts.clear()
        compare(models)
        assert (counts["attention"], counts["layer_norm"]) == (blocks, 2 * blocks)
    for model in models:
        model.out_indices = [1]
    counts.clear()
    compare(models, output_hidden_states=True)
    assert counts["attention"] == 4


@each
def test_maps_from_graphs(name, monkeypatch):
    """A recorded pass without tokens, and another where other stages are read."""
    models = pair(name)
    fast, ops = models[1], torch_ops()
    monkeypatch.setattr(state, "choose_ops", lambda *args: (ops, "in a test"))
    state_of(fast).recorder = SoftwareRecorder
    for indices in ([1], [1], [1], [0, 2], [0, 2], [0, 2]):
        for model in models:
            model.out_indices = indices
        compare(models)
        compare(models, 2 * PIXELS)
    assert state_of(fast).bound.engine.graph_report().count == 2


@each
def test_written_weights_are_followed(name):
    norm = "norm" if "dinov3" in name else "layernorm"
    for write in (
        lambda m: m.get_submodule(norm).weight.mul_(2),
        lambda m: layer(m).layer_scale1.lambda1.mul_(3),
        lambda m: m.embeddings.cls_token.mul_(2),
    ):
        assert_follows(pair(name, apply_layernorm=True, out_indices=[2]), write)


@each
def test_hooks_on_the_norm_run(name):
    norm = "norm" if "dinov3" in name else "layernorm"
    add = hook(lambda m: m.get_submodule(norm))
    assert_follows(pair(name, apply_layernorm=True), add)


@each
def test_changed_modules_fall_back(name):
    change = hook(lambda m: layer(m, 1).mlp)
    assert_falls_back(pair(name, out_indices=[2]), change, "forward hooks")


@each
def test_calls_that_fall_back(name):
    stock, fast = pair(name)
    with torch.no_grad():
        assert_stock(fast, stock, "output_attentions", PIXELS, output_attentions=True)
        for model in (stock, fast):
            model.out_indices = []
        assert_stock(fast, stock, "no stage", PIXELS)


def test_a_config_that_does_not_fit_the_weights_of_dinov3():
    stock, fast = models = pair("dinov3 backbone", reshape_hidden_states=False)
    for model in models:
        model.config.num_register_tokens = 3  # the last register becomes a patch
    with torch.no_grad():
        assert_stock(fast, stock, "num_register_tokens is 3", PIXELS)


def test_a_copied_and_saved_backbone_of_dinov2(tmp_path):
    """Pickled it cannot be: transformers' own has hooks that cannot."""
    stock, fast = pair("dinov2 backbone", out_indices=[1])
    fast.save_pretrained(tmp_path)
    loaded = vit_fast.Dinov2Backbone.from_pretrained(tmp_path).eval().requires_grad_(False)
    for again in (copy.deepcopy(fast), loaded):
        compare((stock, again))


CONFIGS = {
    "dinov2": Dinov2Config,
    "dinov2 with registers": Dinov2WithRegistersConfig,
    "dinov3": DINOv3ViTConfig,
}


def config_of(name: str, **fields: object) -> PreTrainedConfig:
    tiny = {k: v for k, v in TINY.items() if k != "num_labels"}
    fields = {**tiny, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], **fields}
    return CONFIGS[name](**fields)


def depth_model(name: str) -> DepthAnythingForDepthEstimation:
    # its neck takes one token away
    fields = dict(reshape_hidden_states=False)
    if name != "dinov2":
        fields["num_register_tokens"] = 0
    config = DepthAnythingConfig(
        backbone_config=config_of(name, **fields),
        patch_size=8,
        reassemble_hidden_size=64,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=4,
    )
    return DepthAnythingForDepthEstimation(config)


def segmenting_model(name: str) -> UperNetForSemanticSegmentation:
    config = UperNetConfig(backbone_config=config_of(name), hidden_size=8, auxiliary_channels=8)
    config.num_labels = 3
    return UperNetForSemanticSegmentation(config)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (depth_model, "dinov2"),
        (depth_model, "dinov2 with registers"),
        (segmenting_model, "dinov2 with registers"),
        (segmenting_model, "dinov3"),
    ],
)
def test_a_model_around_a_backbone(make, name):
    stock = randomize(make(name)).eval().requires_grad_(False)
    pixels = images(1, 3, 32, 48)
    with torch.no_grad():
        theirs = stock(pixels)
        fast = vit_fast.accelerate(stock)
        ours = fast(pixels)
    assert [found.name for found in vit_fast.explain(fast)] == ["backbone"]
    assert not reasons(fast)
    assert theirs[0].std() > 1e-3
    assert_same(ours, theirs, 1e-4)
