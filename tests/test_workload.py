"""Operations of a forward pass, counted by hand."""

from dataclasses import replace

import pytest

from vit_fast.workload import MODELS, Model, operations

TINY = Model("tiny", 32, 16, 64, 2, 4, 96, "silu", prefix=5)


def test_a_gated_layer_stands_in_place_of_fc1():
    plain, gated = (
        {o.name: o for o in operations(m, 3)} for m in (TINY, replace(TINY, gated=True))
    )
    assert list(plain) == list(gated)
    assert all(plain[name] == gated[name] for name in plain if name != "fc1")
    o = gated["fc1"]
    assert (o.op, o.count) == ("gated", 2)
    assert o.shape == dict(M=27, N=96, K=64, activation="silu")
    assert o.flops == 2 * plain["fc1"].flops == 4 * 27 * 96 * 64
    assert o.bytes == 2 * (27 * 64 + 2 * 96 * 64 + 2 * 96 + 27 * 96)


@pytest.mark.parametrize("gated, matrices", [(False, 2), (True, 3)])
def test_parameters(gated, matrices):
    model = replace(TINY, gated=gated)
    assert model.parameters == 3 * 256 * 64 + 2 * (4 * 64 * 64 + matrices * 64 * 96)


@pytest.mark.parametrize(
    "name, tokens, head_dim, billions",
    [("dinov2-g-14", 257, 64, 1.13), ("dinov3-b-16", 201, 64, 0.086), ("dinov3-7b-16-512", 1029, 128, 6.7)],
)  # fmt: skip
def test_models_of_dino(name, tokens, head_dim, billions):
    """Oquab et al. 2023 (arXiv:2304.07193) and Simeoni et al. 2025 (arXiv:2508.10104) name the sizes."""
    model = MODELS[name]
    assert (model.tokens, model.head_dim) == (tokens, head_dim)
    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.02)
    assert model.gated == (model.activation == "silu")
