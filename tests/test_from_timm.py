"""ViT.from_timm against timm itself, in float64, where timm can be imported."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from accuracy import assert_as_accurate
from models import NORM, images, randomize
from timm_models import SIGLIP, needs_timm, timm_model
from vit_fast import Normalization, ViT


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
    "SwiGLU": lambda: timm_model(mlp_layer="layers.SwiGLU", act_layer=nn.SiLU),
    "SwiGLUPacked": lambda: timm_model(mlp_layer="layers.SwiGLUPacked", act_layer="silu"),
    "gate last": lambda: timm_model(mlp_layer="layers.GluMlp", act_layer="gelu"),
    "CLIP": projecting,
    "patches of 14": lambda: timm_model(img_size=70, patch_size=14, dynamic_img_size=True),
    "no positions": lambda: timm_model(pos_embed="none", class_token=False, global_pool="avg"),
    "one channel, not square": lambda: timm_model(in_chans=1, img_size=(24, 40)),
    "not a multiple of the patch": lambda: timm_model(img_size=(37, 33)),
    "no biases": lambda: timm_model(qkv_bias=False, proj_bias=False),
    "PyTorch's tanh GELU": lambda: timm_model(act_layer=partial(nn.GELU, approximate="tanh")),
    "wide heads": wide_heads,
    "no head": tokens_alone,
    "dropout of a model in eval mode": lambda: timm_model(
        **{f"{what}drop_rate": 0.5 for what in ("", "pos_", "patch_", "proj_", "attn_")}
    ),
}


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
