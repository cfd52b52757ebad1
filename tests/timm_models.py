"""Small VisionTransformers of timm, where it can be imported."""

from typing import Any

import pytest
from torch import nn

from models import randomize

try:
    from timm import layers
    from timm.models import vision_transformer
except (
    ImportError,
    RuntimeError,
) as error:  # timm needs torchvision, and that the torch it was built for
    layers = vision_transformer = None
    WHY = f"timm cannot be imported: {error}"
else:
    WHY = ""
needs_timm = pytest.mark.skipif(bool(WHY), reason=WHY)

TINY = dict(
    img_size=32,
    patch_size=8,
    embed_dim=64,
    depth=2,
    num_heads=2,
    mlp_ratio=1.5,
    num_classes=40,
)
SIGLIP = dict(class_token=False, global_pool="map", act_layer="gelu_tanh")


def timm_model(**config: Any) -> nn.Module:
    """A randomized VisionTransformer in eval mode; `config` changes TINY.

    A string that begins with "layers." or "vision_transformer." is what timm has there.
    """
    modules = {"layers": layers, "vision_transformer": vision_transformer}
    for key, value in config.items():
        where, _, name = value.partition(".") if isinstance(value, str) else ("", "", "")
        if where in modules:
            config[key] = getattr(modules[where], name)
    return randomize(vision_transformer.VisionTransformer(**TINY | config)).eval()
