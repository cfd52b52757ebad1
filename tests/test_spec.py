"""ViTSpec: what it computes from itself, and what it refuses."""

from dataclasses import replace

import pytest

from models import SPEC


def test_flops_of_vit_base():
    """17.6 GMAC is what papers count for ViT-B/16 at 224."""
    sizes = dict(image_size=(224, 224), patch=16, dim=768, depth=12, heads=12, head_dim=64)
    base = replace(SPEC, mlp_dim=3072, **sizes)
    assert base.grid() == (14, 14)
    assert base.tokens() == 197
    assert base.flops() / 2 == pytest.approx(17.56e9, rel=0.005)
    assert base.flops(batch=3) == 3 * base.flops()
    assert base.flops(size=(448, 448)) > 4 * base.flops()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depth", 0, "depth must be at least 1, got 0"),
        ("eps", 0.0, "eps must be positive, got 0.0"),
        ("image_size", (32, 4), r"image_size \(32, 4\) holds no patch of 8 x 8"),
        ("activation", "mish", "activation must be one of gelu, .* got 'mish'"),
        ("pooler_activation", "mish", "pooler_activation must be one of tanh, .* got 'mish'"),
    ],
)
def test_a_spec_no_encoder_can_have(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **{field: value})
