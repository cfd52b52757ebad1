"""ViT.from_timm against timm itself, in float64, where timm can be imported; and what it refuses."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTModel

from accuracy import assert_as_accurate
from models import NORM, hf_model, images, randomize
from refusals import refused
from vit_fast import Normalization, ViT

try:
    from timm.layers import AttentionPoolLatent, GluMlp, RmsNorm, SwiGLU, SwiGLUPacked
    from timm.models import vision_transformer as timm_vit
except (ImportError, RuntimeError) as error:  # timm needs torchvision, and that the right torch
    timm_vit, WHY = None, f"timm cannot be imported: {error}"
    AttentionPoolLatent = GluMlp = RmsNorm = SwiGLU = SwiGLUPacked = None
else:
    WHY = ""
needs_timm = pytest.mark.skipif(timm_vit is None, reason=WHY)

TINY = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=40)
SIGLIP = dict(class_token=False, global_pool="map", act_layer="gelu_tanh")


def timm_model(seed: int = 0, **config) -> nn.Module:
    """A randomized VisionTransformer in eval mode; `config` changes TINY. Its MLP is three halves as wide as the rest."""
    config = {**TINY, "mlp_ratio": 1.5, **config}
    return randomize(timm_vit.VisionTransformer(**config), seed).eval()


def wide_heads() -> nn.Module:
    """3 heads of 24 lanes for 64 features."""
    model = timm_model()
    for block in model.blocks:
        block.attn = type(block.attn)(64, 3, attn_head_dim=24, qkv_bias=True)
    return randomize(model).eval()


def projecting() -> nn.Module:
    """As timm makes a CLIP, with the bias of its projection left out."""
    clip = dict(pre_norm=True, act_layer="quick_gelu", norm_layer=partial(nn.LayerNorm, eps=1e-5))
    model = timm_model(**clip)
    model.head = nn.Linear(64, 7, bias=False)
    return randomize(model).eval()


def tokens_alone() -> nn.Module:
    model = timm_model(class_token=False, global_pool="")
    model.reset_classifier(0, "avg")
    return model


MODELS = {
    "class token": timm_model,
    "average behind fc_norm": lambda: timm_model(global_pool="avg"),
    "average, norm first": lambda: timm_model(global_pool="avg", fc_norm=False, class_token=False),
    "class token behind fc_norm": lambda: timm_model(fc_norm=True),
    "map": lambda: timm_model(**SIGLIP),
    "map behind fc_norm": lambda: timm_model(fc_norm=True, **SIGLIP),
    "map of a register too": lambda: timm_model(
        reg_tokens=1, pool_include_prefix=True, init_values=0.1, **SIGLIP
    ),
    "registers without positions": lambda: timm_model(
        reg_tokens=4, no_embed_class=True, init_values=0.1
    ),
    "registers with positions": lambda: timm_model(reg_tokens=2, global_pool="avg"),
    "registers alone": lambda: timm_model(reg_tokens=4, class_token=False, global_pool="avg"),
    "DeiT 3": lambda: timm_model(no_embed_class=True, init_values=1e-6, drop_path_rate=0.1),
    "SwiGLU": lambda: timm_model(mlp_layer=SwiGLU, act_layer=nn.SiLU),
    "SwiGLUPacked": lambda: timm_model(mlp_layer=SwiGLUPacked, act_layer="silu"),
    "gate last": lambda: timm_model(mlp_layer=GluMlp, act_layer="gelu"),
    "CLIP": projecting,
    "patches of 14": lambda: timm_model(img_size=70, patch_size=14, dynamic_img_size=True),
    "no positions": lambda: timm_model(pos_embed="none", reg_tokens=1),
    "one channel, not square": lambda: timm_model(in_chans=1, img_size=(24, 40)),
    "not a multiple of the patch": lambda: timm_model(img_size=(37, 33)),
    "no biases": lambda: timm_model(qkv_bias=False, proj_bias=False),
    "PyTorch's tanh GELU": lambda: timm_model(act_layer=partial(nn.GELU, approximate="tanh")),
    "wide heads": wide_heads,
    "no head": tokens_alone,
    "dropout of a model in eval mode": lambda: timm_model(
        drop_rate=0.5, pos_drop_rate=0.5, patch_drop_rate=0.5, proj_drop_rate=0.5, attn_drop_rate=0.5
    ),
}  # fmt: skip


@torch.inference_mode()
def answers(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What timm makes of pixels, by our names."""
    tokens = model.forward_features(x)
    pooled = model.forward_head(tokens, pre_logits=True)
    logits = None if type(model.head) is nn.Identity else model(x)
    return dict(tokens=tokens, pooled=pooled, logits=logits)


def compare(vit: ViT, model: nn.Module, exact: nn.Module, pixels: Tensor) -> None:
    """By the rule, what comes with tokens and what is asked for alone; `pixels` float64, `exact` in float64."""
    x = pixels.to(vit.dtype)
    theirs, ref = answers(model, x), answers(exact, x.double())
    head = ref["logits"] is not None
    with torch.inference_mode():
        assert_as_accurate(vit(x), ref["tokens"], theirs["tokens"])
        for tokens in (True, False):
            ours = vit.features(x, tokens=tokens, pooled=True, logits=head)
            for name in ("tokens", "pooled", "logits"):
                if ref[name] is not None and (tokens or name != "tokens"):
                    assert_as_accurate(getattr(ours, name), ref[name], theirs[name])


def pixels_for(model: nn.Module) -> Tensor:
    shape = (model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    return images(3, *shape).double()


@needs_timm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_timm(name, dtype):
    model = MODELS[name]().to(dtype)
    compare(ViT.from_timm(model), model, copy.deepcopy(model).double(), pixels_for(model))


@needs_timm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic_img_size", "fixed size"])
@pytest.mark.parametrize("config", [{}, dict(no_embed_class=True, reg_tokens=3)], ids=str)
def test_other_sizes(config, dynamic, dtype):
    """Where timm takes one size alone, as set_input_size changes it."""
    config = dict(img_size=56, patch_size=14, dynamic_img_size=dynamic, **config)
    model = timm_model(**config).to(dtype)
    vit = ViT.from_timm(model)
    for size in ((42, 70), (56, 56), (112, 28), (84, 98)):
        sized = copy.deepcopy(model)
        if not dynamic:
            sized.set_input_size(img_size=size)
        compare(vit, sized, copy.deepcopy(sized).double(), images(3, 3, *size).double())


@needs_timm
def test_position_tables_are_resized_as_by_timm():
    """Bit for bit, in bf16 too."""
    from timm.layers import resample_abs_pos_embed

    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = timm_model(img_size=64, reg_tokens=2).to(dtype)
        vit = ViT.from_timm(model)
        for grid in ((8, 8), (3, 5), (4, 16), (13, 9)):
            theirs = resample_abs_pos_embed(model.pos_embed, grid, (8, 8), num_prefix_tokens=3)
            assert torch.equal(vit.patch_positions(grid), theirs[0, 3:])


@needs_timm
def test_bytes_are_normalized_by_the_pretrained_cfg():
    model, pixels = timm_model(), images(2, 3, 32, 32, dtype=torch.uint8)
    given = Normalization(0.5, mean=(1.0, 2.0, 3.0), std=(40.0, 50.0, 60.0))
    assert ViT.from_timm(model).normalization is None
    for config, wanted in (
        (dict(mean=NORM.mean, std=NORM.std), NORM),
        (dict(mean=[0.5], std=(0.25,)), Normalization(1 / 255, (0.5,) * 3, (0.25,) * 3)),
        (dict(mean=(0.5, 0.5), std=(0.25, 0.25)), None),
        (dict(mean=None), None),
    ):
        model.pretrained_cfg = config
        assert ViT.from_timm(model).normalization == wanted
        assert ViT.from_timm(model, given).normalization == given
    model.pretrained_cfg = dict(mean=NORM.mean, std=NORM.std)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (NORM.mean, NORM.std))
    normalized = (pixels.double() / 255 - mean) / std
    ref = answers(copy.deepcopy(model).double(), normalized)["tokens"]
    theirs = answers(model, normalized.float())["tokens"]
    with torch.inference_mode():
        assert_as_accurate(ViT.from_timm(model)(pixels), ref, theirs)


@needs_timm
def test_weights_are_copies():
    """Of a model in training mode, too, where that changes nothing; frozen if it is."""
    model = timm_model().train()
    vit, before = ViT.from_timm(model), copy.deepcopy(model.state_dict())
    assert not vit.training and all(p.requires_grad for p in vit.parameters())
    assert set(vit.state_dict()) == set(before)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert all(torch.equal(p, before[name]) for name, p in vit.state_dict().items())
    frozen = ViT.from_timm(model.requires_grad_(False))
    assert not any(p.requires_grad for p in frozen.parameters())


def changed(change, **config) -> nn.Module:
    model = timm_model(**config)
    change(model)
    return model


def set_at(path: str, value):
    """What sets the attribute at `path`; a callable makes it."""
    *way, last = path.split(".")
    return lambda model: setattr(
        model.get_submodule(".".join(way)), last, value() if callable(value) else value
    )


class Lora(nn.Linear):
    """A Linear that computes more."""


REFUSED = {
    "qk_norm": (lambda: timm_model(qk_norm=True), "blocks.0.attn.q_norm is timm.layers.norm.LayerNorm"),
    "scale_attn_norm": (lambda: timm_model(scale_attn_norm=True), "blocks.0.attn.norm is timm"),
    "scale_mlp_norm": (lambda: timm_model(scale_mlp_norm=True), "blocks.0.mlp.norm is timm"),
    "norm in SwiGLU": (
        lambda: timm_model(mlp_layer=partial(SwiGLU, norm_layer=nn.LayerNorm), scale_mlp_norm=True),
        "blocks.0.mlp.norm is timm",
    ),
    "RmsNorm": (lambda: timm_model(norm_layer=RmsNorm), "norm.RmsNorm, which from_timm does not support"),
    "parallel": (lambda: timm_model(block_fn=timm_vit.ParallelScalingBlock), "blocks.0 is timm.models.vision_transformer.ParallelScalingBlock"),
    "post-norm": (lambda: timm_model(block_fn=timm_vit.ResPostBlock), "ResPostBlock"),
    "differential": (lambda: timm_model(attn_layer="diff"), "blocks.0.attn is", "DiffAttention"),
    "another activation": (lambda: timm_model(act_layer="relu"), "blocks.0.mlp.act is", "ReLU"),
    "sigmoid gate": (lambda: timm_model(mlp_layer=GluMlp, act_layer=nn.Sigmoid), "Sigmoid"),
    "final_norm=False": (lambda: timm_model(final_norm=False), "norm is", "Identity", "final_norm=False"),
    "two final norms": (lambda: changed(set_at("fc_norm", lambda: nn.LayerNorm(64))), "norm is", "fc_norm", "expected one LayerNorm"),
    "no pooling": (lambda: timm_model(global_pool=""), "global_pool ''", "reset_classifier"),
    "max": (lambda: timm_model(global_pool="max"), "global_pool 'max'"),
    "avgmax": (lambda: timm_model(global_pool="avgmax"), "global_pool 'avgmax'"),
    "prr": (lambda: timm_model(global_pool="prr"), "attn_pool is", "AttentionPoolPrr"),
    "average of all": (lambda: timm_model(global_pool="avg", pool_include_prefix=True), "pool_include_prefix True", "'avg'"),
    "map of patches alone": (lambda: timm_model(reg_tokens=1, **SIGLIP), "pool_include_prefix False", "'map'"),
    "padding": (lambda: timm_model(dynamic_img_size=True, dynamic_img_pad=True), "dynamic_img_pad"),
    "patch norm": (lambda: timm_model(embed_norm_layer=nn.LayerNorm), "patch_embed.norm is", "LayerNorm"),
    "oblong patches": (lambda: timm_model(patch_size=(8, 16)), "patches of 8 x 16"),
    "overlapping patches": (lambda: changed(set_at("patch_embed.proj.stride", (4, 4))), "stride"),
    "a map of patches": (lambda: changed(set_at("patch_embed.flatten", False)), "flatten"),
    "dropout in training": (lambda: timm_model(attn_drop_rate=0.1).train(), "blocks.0.attn.attn_drop drops out 0.1", "eval()"),
    "drop path in training": (lambda: timm_model(drop_path_rate=0.1).train(), "blocks.1.drop_path1 drops out"),
    "patch dropout in training": (lambda: timm_model(patch_drop_rate=0.5).train(), "patch_drop drops out 0.5"),
    "another scale": (lambda: changed(set_at("blocks.1.attn.scale", 0.1)), "blocks.1.attn has scale 0.1"),
    "another eps": (lambda: changed(set_at("norm.eps", 1e-3)), "LayerNorms of different eps"),
    "eps within a block": (lambda: changed(set_at("blocks.1.norm2.eps", 1e-3)), "blocks.1 has LayerNorms of different eps"),
    "blocks that differ": (lambda: changed(set_at("blocks.1.mlp.act", nn.SiLU)), "the blocks differ in activation"),
    "one LayerScale": (lambda: changed(set_at("blocks.0.ls1", nn.Identity), init_values=1.0), "blocks.0 has a LayerScale"),
    "a lacking bias": (lambda: changed(set_at("blocks.0.norm1.bias", None)), "blocks.0.norm1.bias is []"),
    "another query": (lambda: changed(set_at("attn_pool", lambda: AttentionPoolLatent(64, num_heads=2, latent_len=3, norm_layer=nn.LayerNorm, mlp_ratio=1.5)), **SIGLIP), "attn_pool"),
    "a query without projection": (lambda: changed(set_at("attn_pool.q", nn.Identity), **SIGLIP), "attn_pool.q is"),
    "another pool_type": (lambda: changed(set_at("attn_pool.pool", "avg"), **SIGLIP), "pool_type"),
    "other heads in the pooling": (lambda: changed(set_at("attn_pool.num_heads", 4), **SIGLIP), "attn_pool has heads 4"),
    "an adapter": (lambda: changed(set_at("blocks.0.attn.qkv", lambda: Lora(64, 192))), "blocks.0.attn.qkv is", "Lora"),
    "a head of more": (lambda: changed(set_at("head", lambda: nn.Sequential(nn.Linear(64, 5)))), "head is", "Sequential"),
    "a hook": (lambda: changed(lambda m: m.blocks[1].register_forward_hook(print)), "blocks.1 has forward hooks"),
    "a forward": (lambda: changed(set_at("blocks.0.mlp.forward", lambda: print)), "blocks.0.mlp has a forward of its own"),
    "another embedding": (lambda: changed(set_at("_pos_embed", lambda: print)), "the model has a _pos_embed of its own"),
    "another parameter": (lambda: changed(lambda m: m.register_parameter("extra", nn.Parameter(torch.ones(2)))), "extra, which from_timm does not know"),
    "another module": (lambda: changed(set_at("blocks.0.attn.gate", lambda: nn.Linear(64, 64))), "blocks.0.attn has gate, which"),
    "another flag": (lambda: changed(set_at("blocks.0.attn.reversed", True)), "blocks.0.attn has reversed, which"),
    "mixed dtypes": (lambda: changed(lambda m: m.norm.double()), "torch.float32, torch.float64"),
    "no weights": (lambda: timm_model().to("meta"), "meta device"),
    "a subclass": (lambda: type("Mine", (timm_vit.VisionTransformer,), {})(**TINY), "exactly", "Mine"),
}  # fmt: skip


@needs_timm
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    make, *parts = REFUSED[name]
    model = make()
    with refused(ValueError, *parts):
        ViT.from_timm(model)


@needs_timm
def test_a_patched_class_is_refused(monkeypatch):
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
