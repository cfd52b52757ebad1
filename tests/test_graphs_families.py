"""Graphs of the encoders of other families: pooling, rotary positions, gates and LayerScale in a graph, never stale."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from models import SPEC, images
from recorder import close, recorded_vit, recorder
from vit_fast import ViT, ViTSpec
from vit_fast.model import Features

BARE = replace(SPEC, pooler_dim=None, num_labels=0)
SPECS = {
    "siglip": replace(
        BARE, class_token=False, position_prefix=0, activation="gelu_tanh", pool="attention"
    ),
    "siglip with a head": replace(
        BARE, class_token=False, position_prefix=0, pool="attention", head_pool="patches", num_labels=5
    ),
    "clip": replace(
        BARE,
        activation="quick_gelu",
        patch_bias=False,
        pre_norm=True,
        norm_tokens=False,
        num_labels=5,
        head_bias=False,
    ),
    "dinov2": replace(
        BARE, layer_scale=True, gated=True, activation="silu", resize="bicubic fp32",
        num_labels=5, head_pool="token and patches",
    ),
    "dinov3": replace(
        BARE, registers=3, positions=False, position_prefix=0, rope_theta=100.0, layer_scale=True
    ),
    "dinov3, gated": replace(
        BARE, registers=3, positions=False, position_prefix=0, rope_theta=100.0, layer_scale=True,
        gated=True, activation="silu", qkv_bias=False, mlp_bias=False,
    ),
    "deit": replace(
        SPEC, distillation_token=True, position_prefix=2, distillation_head=True, pooler_dim=None
    ),
    "idefics": replace(BARE, class_token=False, position_prefix=0, resize="nearest", pool="patches"),
}  # fmt: skip
SIZES = [(32, 32), (24, 40)]


@pytest.fixture(params=SPECS.values(), ids=SPECS)
def vit(request) -> ViT:
    return recorded_vit(request.param)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def asked(spec: ViTSpec) -> list[dict[str, bool]]:
    found = [
        dict(pooled=True),
        dict(tokens=False, pooled=True),
        dict(tokens=False, hidden_states=True),
        dict(tokens=False, pooled=True, hidden_states=True),
    ]
    return found + [{**outputs, "logits": True} for outputs in found if spec.num_labels]


def assert_same(found: Features, expected: Features) -> None:
    for name, value in vars(expected).items():
        if isinstance(value, tuple):
            assert all(map(close, getattr(found, name), value))
        else:
            assert value is None or close(getattr(found, name), value), name


def by_launches(vit: ViT, pixels, **outputs: bool) -> Features:
    """By a copy, which has no derived weights either."""
    twin = copy.deepcopy(vit)
    twin.graphs = False
    return twin.features(pixels, **outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_features(vit, dtype):
    calls = [(batch, size) for batch in (2, 9) for size in SIZES]
    for outputs in asked(vit.spec):
        vit.release_graphs()
        for seed in range(3):
            vit.capture_now()
            for batch, size in calls:
                vit.capture_now()
                pixels = images(batch, 3, *size, seed=seed, dtype=dtype)
                assert_same(vit.features(pixels, **outputs), by_launches(vit, pixels, **outputs))
        assert vit.graph_report().count == len(calls) and not vit.graph_report().refused
    assert recorder(vit).replays == 2 * len(calls) * len(asked(vit.spec))


def written(vit: ViT, name: str, t: torch.Tensor) -> None:
    t.mul_(1.5)


def replaced(vit: ViT, name: str, t: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    new = nn.Parameter(1.5 * t) if isinstance(t, nn.Parameter) else 1.5 * t
    setattr(vit.get_submodule(owner), leaf, new)


@pytest.mark.parametrize("change", [written, replaced])
def test_no_stale_result(vit, change):
    """Each parameter in turn, and the frequencies of rotary positions."""
    outputs = dict(pooled=True, logits=bool(vit.spec.num_labels))
    calls = [images(2, 3, *size) for size in SIZES]
    for name, t in [*vit.named_parameters(), *vit.named_buffers()]:
        if name.startswith("blocks.1"):
            continue
        before = [vit.features(pixels, **outputs) for pixels in calls]
        change(vit, name, t)
        for i in range(3):
            for pixels, old in zip(calls, before):
                vit.capture_now()
                expected = by_launches(vit, pixels, **outputs)
                assert_same(vit.features(pixels, **outputs), expected)
                if i == 0:
                    same = close(old.pooled, expected.pooled)
                    if old.logits is not None:
                        same = same and close(old.logits, expected.logits)
                    assert not same, name
    assert recorder(vit).replays > 2 * len(list(vit.blocks[0].parameters()))
    assert (recorder(vit).records == len(calls)) == (change is written)
