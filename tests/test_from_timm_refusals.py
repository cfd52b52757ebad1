"""What ViT.from_timm refuses, each with a line that names it."""

import pytest
import torch
from torch import nn
from transformers import ViTModel

from models import hf_model
from refusals import refused
from timm_models import SIGLIP, TINY, layers, needs_timm, timm_model, vision_transformer
from vit_fast import ViT


class Lora(nn.Linear):
    """A Linear that computes more."""


def queries() -> nn.Module:
    """Attention pooling by three queries."""
    return layers.AttentionPoolLatent(
        64,
        num_heads=2,
        latent_len=3,
        mlp_ratio=1.5,
        norm_layer=layers.LayerNorm,
        act_layer=layers.GELUTanh,
    )


OF_CONFIGS = {
    "qk_norm": (dict(qk_norm=True), "blocks.0.attn.q_norm is", "LayerNorm, expected Identity"),
    "scale_attn_norm": (dict(scale_attn_norm=True), "blocks.0.attn.norm is", "LayerNorm"),
    "scale_mlp_norm": (dict(scale_mlp_norm=True), "blocks.0.mlp.norm is", "LayerNorm"),
    "norm in SwiGLU": (
        dict(mlp_layer="layers.SwiGLU", act_layer="silu", scale_mlp_norm=True),
        "blocks.0.mlp.norm is",
    ),
    "RmsNorm": (dict(norm_layer="layers.RmsNorm"), "RmsNorm, which from_timm does not support"),
    "parallel": (
        dict(block_fn="vision_transformer.ParallelScalingBlock"),
        "blocks.0 is timm.models.vision_transformer.ParallelScalingBlock",
    ),
    "post-norm": (dict(block_fn="vision_transformer.ResPostBlock"), "blocks.0 is", "ResPostBlock"),
    "differential": (dict(attn_layer="diff"), "blocks.0.attn is", "DiffAttention"),
    "another activation": (dict(act_layer="relu"), "blocks.0.mlp.act is", "ReLU"),
    "sigmoid gate": (dict(mlp_layer="layers.GluMlp", act_layer=nn.Sigmoid), "Sigmoid"),
    "no final norm": (dict(final_norm=False), "norm is", "Identity", "final_norm=False"),
    "no pooling": (dict(global_pool=""), "global_pool ''", "reset_classifier"),
    "max": (dict(global_pool="max"), "global_pool 'max'"),
    "avgmax": (dict(global_pool="avgmax"), "global_pool 'avgmax'"),
    "prr": (dict(global_pool="prr"), "attn_pool is", "AttentionPoolPrr"),
    "average of all": (
        dict(global_pool="avg", pool_include_prefix=True),
        "pool_include_prefix True is not supported with global_pool 'avg'",
    ),
    "map of patches alone": (
        dict(reg_tokens=1, **SIGLIP),
        "pool_include_prefix False is not supported with global_pool 'map'",
    ),
    "no positions of tokens": (dict(pos_embed="none"), "no position table and 1 prefix tokens"),
    "padding": (dict(dynamic_img_size=True, dynamic_img_pad=True), "dynamic_img_pad"),
    "patch norm": (dict(embed_norm_layer=nn.LayerNorm), "patch_embed.norm is", "LayerNorm"),
    "oblong patches": (dict(patch_size=(8, 16)), "patches of 8 x 16"),
}
IN_TRAINING = {
    "drop_rate": "head_drop drops out 0.5",
    "pos_drop_rate": "pos_drop drops out",
    "patch_drop_rate": "patch_drop drops out",
    "proj_drop_rate": "blocks.0.attn.proj_drop drops out",
    "attn_drop_rate": "blocks.0.attn.attn_drop drops out",
    "drop_path_rate": "blocks.1.drop_path1 drops out",
}
# path of an attribute, what is put there (a function makes it), the model's config
OF_CHANGES = {
    "two final norms": ("fc_norm", lambda: nn.LayerNorm(64), {}, "expected one LayerNorm"),
    "overlapping patches": ("patch_embed.proj.stride", (4, 4), {}, "stride", "(4, 4)"),
    "dilated patches": ("patch_embed.proj.dilation", (2, 2), {}, "dilation", "(2, 2)"),
    "a map of patches": ("patch_embed.flatten", False, {}, "flatten", "dynamic_img_size False"),
    "no size": ("patch_embed.img_size", None, {}, "img_size None"),
    "other patches": ("patch_embed.patch_size", (4, 4), {}, "patch_size (4, 4)"),
    "another prefix": ("num_prefix_tokens", 2, {}, "num_prefix_tokens is 2, of 1 tokens"),
    "another scale": ("blocks.1.attn.scale", 0.1, {}, "blocks.1.attn has scale 0.1"),
    "another eps": ("norm.eps", 1e-3, {}, "LayerNorms of different eps"),
    "eps in a block": ("blocks.1.norm2.eps", 1e-3, {}, "blocks.1 has LayerNorms of different eps"),
    "eps of norm_pre": ("norm_pre.eps", 1e-3, dict(pre_norm=True), "different eps"),
    "eps of the pooling": ("attn_pool.norm.eps", 1e-3, SIGLIP, "different eps"),
    "blocks that differ": (
        "blocks.1.mlp.act",
        nn.SiLU,
        {},
        "the blocks differ in activation, ['gelu', 'silu']",
    ),
    "one LayerScale": (
        "blocks.0.ls1",
        nn.Identity,
        dict(init_values=1.0),
        "blocks.0 has a LayerScale behind one",
    ),
    "a lacking bias": ("blocks.0.norm1.bias", None, {}, "blocks.0.norm1.bias is []"),
    "three queries": ("attn_pool", queries, SIGLIP, "attn_pool.latent is [(1, 3, 64)]"),
    "no query projection": ("attn_pool.q", nn.Identity, SIGLIP, "attn_pool.q is"),
    "another pool_type": ("attn_pool.pool", "avg", SIGLIP, "pool_type"),
    "positions in the pooling": (
        "attn_pool.pos_embed",
        lambda: nn.Parameter(torch.ones(16, 64)),
        SIGLIP,
        "pos_embed",
    ),
    "other heads in the pooling": ("attn_pool.num_heads", 4, SIGLIP, "attn_pool has heads 4"),
    "another activation in the pooling": (
        "attn_pool.mlp.act",
        nn.SiLU,
        SIGLIP,
        "attn_pool has activation 'silu'",
    ),
    "pooling that is not used": ("global_pool", "avg", SIGLIP, "global_pool 'avg' with attn_pool"),
    "chunks of another axis": (
        "blocks.0.mlp.chunk_dim",
        1,
        dict(mlp_layer="layers.GluMlp"),
        "chunk_dim 1",
    ),
    "a dropout that is none": ("blocks.0.drop_path1", lambda: nn.GELU(), {}, "drop_path1 is"),
    "an adapter": ("blocks.0.attn.qkv", lambda: Lora(64, 192), {}, "blocks.0.attn.qkv is", "Lora"),
    "a head of more": ("head", lambda: nn.Sequential(nn.Linear(64, 5)), {}, "head is"),
    "a forward": (
        "blocks.0.mlp.forward",
        lambda: print,
        {},
        "blocks.0.mlp has a forward of its own",
    ),
    "an embedding": ("_pos_embed", lambda: print, {}, "the model has a _pos_embed of its own"),
    "a parameter": ("extra", lambda: nn.Parameter(torch.ones(2)), {}, "the model has extra, which"),
    "a gate": (
        "blocks.0.attn.gate",
        lambda: nn.Linear(64, 64),
        {},
        "blocks.0.attn has gate, which",
    ),
    "a flag": ("blocks.0.attn.reversed", True, {}, "blocks.0.attn has reversed, which"),
}
OF_MODELS = {
    "a hook": (lambda m: m.blocks[1].register_forward_hook(print), "blocks.1 has forward hooks"),
    "a hook before": (lambda m: m.head.register_forward_pre_hook(print), "head has forward hooks"),
    "a buffer": (lambda m: m.norm.register_buffer("mean", torch.ones(64)), "norm has mean, which"),
    "mixed dtypes": (lambda m: m.norm.double(), "torch.float32, torch.float64"),
    "no weights": (lambda m: m.to("meta"), "meta device"),
    "no blocks": (lambda m: m.blocks.__delitem__(slice(None)), "no blocks"),
}


@needs_timm
@pytest.mark.parametrize("name", OF_CONFIGS)
def test_configs(name):
    config, *parts = OF_CONFIGS[name]
    model = timm_model(**config)
    with refused(ValueError, *parts):
        ViT.from_timm(model)


@needs_timm
@pytest.mark.parametrize("name", IN_TRAINING)
def test_dropout_in_training(name):
    model = timm_model(**{name: 0.5})
    ViT.from_timm(model)
    with refused(ValueError, IN_TRAINING[name], "call model.eval() first"):
        ViT.from_timm(model.train())


@needs_timm
@pytest.mark.parametrize("name", OF_CHANGES)
def test_changed_attributes(name):
    path, value, config, *parts = OF_CHANGES[name]
    model = timm_model(**config)
    ViT.from_timm(model)
    way, _, last = path.rpartition(".")
    setattr(model.get_submodule(way), last, value() if callable(value) else value)
    with refused(ValueError, *parts):
        ViT.from_timm(model)


@needs_timm
@pytest.mark.parametrize("name", OF_MODELS)
def test_changed_models(name):
    change, *parts = OF_MODELS[name]
    model = timm_model()
    change(model)
    with refused(ValueError, *parts):
        ViT.from_timm(model)


@needs_timm
def test_a_subclass():
    model = type("Mine", (vision_transformer.VisionTransformer,), {})(**TINY)
    with refused(ValueError, "exactly", "got a", "Mine"):
        ViT.from_timm(model)


@needs_timm
def test_a_patched_class(monkeypatch):
    model = timm_model()
    monkeypatch.setattr(type(model.blocks[0].attn), "forward", lambda self, x, **kwargs: x)
    with refused(ValueError, "blocks.0.attn has a forward of its own"):
        ViT.from_timm(model)


class VisionTransformer(nn.Module):
    """Of timm by its name alone."""


def test_models_that_are_not_timms():
    """Runs without timm."""
    vit = ViT.from_hf(hf_model(ViTModel))
    for model in (VisionTransformer(), nn.Linear(2, 2), hf_model(ViTModel), vit, None):
        name = f"{type(model).__module__}.{type(model).__qualname__}"
        with refused(
            ValueError, "exactly a timm.models.vision_transformer.VisionTransformer", name
        ):
            ViT.from_timm(model)
