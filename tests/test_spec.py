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
        ("image_size", 32, r"image_size must be \(height, width\), got 32"),
        ("eps", float("nan"), "eps must be positive, got nan"),
        ("rope_theta", 0.0, "rope_theta must be positive, got 0.0"),
        ("registers", -1, "registers must be at least 0, got -1"),
        ("num_labels", -1, "num_labels must be at least 0, got -1"),
        ("pooler_dim", 0, "pooler_dim must be at least 1, got 0"),
        ("class_token", False, "position_prefix is 1, of 0 prefix tokens"),
        ("pool", "token and patches", "twice as wide as a pooler"),
        ("distillation_head", True, "needs a distillation_token"),
        ("pooler_activation", "mish", "pooler_activation must be one of tanh, .* got 'mish'"),
    ],
)
def test_a_spec_no_encoder_can_have(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **{field: value})


def test_a_pool_that_does_not_fit():
    plain = replace(SPEC, pooler_dim=None)
    replace(plain, pool="token and patches")
    with pytest.raises(ValueError, match="twice as wide as a pooler or the final norm takes"):
        replace(plain, pool="token and patches", norm_tokens=False)
    with pytest.raises(ValueError, match="2 heads pool 63 channels: expected a divisor"):
        replace(plain, dim=63, pool="attention")
