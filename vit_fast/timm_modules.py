"""Looking into a live model of timm, whose classes are known by their names: timm is not imported.

A module, a parameter or a flag that is not in the table below may change what a forward pass computes: an error.
"""

import inspect
from typing import Any

from torch import nn

MODEL = "timm.models.vision_transformer.VisionTransformer"
_MLP = "fc1 act drop1 norm fc2 drop2"
_ATTENTION = "qkv q_norm k_norm attn_drop norm proj proj_drop fused_attn"
# class -> its children, its own parameters, and those of its flags that may be set
_KNOWN = {
    MODEL: "cls_token reg_token pos_embed patch_embed pos_drop patch_drop norm_pre blocks norm attn_pool fc_norm "
    "head_drop head has_class_token no_embed_class pool_include_prefix dynamic_img_size grad_checkpointing fix_init",
    "timm.models.vision_transformer.Block": "norm1 attn ls1 drop_path1 norm2 mlp ls2 drop_path2",
    "timm.models.vision_transformer.Attention": _ATTENTION,  # of earlier versions
    "timm.models.vision_transformer.LayerScale": "gamma inplace",
    "timm.layers.attention.Attention": _ATTENTION,
    "timm.layers.attention_pool.AttentionPoolLatent": "latent q kv q_norm k_norm proj proj_drop norm mlp fused_attn",
    "timm.layers.layer_scale.LayerScale": "gamma inplace",
    "timm.layers.mlp.Mlp": _MLP,
    "timm.layers.mlp.GluMlp": f"{_MLP} gate_last",
    "timm.layers.mlp.SwiGLU": f"fc1_g fc1_x {_MLP}",
    "timm.layers.norm.LayerNorm": "weight bias elementwise_affine",
    "timm.layers.patch_embed.PatchEmbed": "proj norm flatten strict_img_size dynamic_img_pad",
    "timm.layers.patch_dropout.PatchDropout": "ordered",
    "timm.layers.drop.DropPath": "scale_by_keep",
    "timm.layers.activations.GELU": "",
    "timm.layers.activations.GELUTanh": "",
    "timm.layers.activations.QuickGELU": "",
    "torch.nn.modules.activation.GELU": "",
    "torch.nn.modules.activation.SiLU": "",
    "torch.nn.modules.conv.Conv2d": "weight bias",
    "torch.nn.modules.dropout.Dropout": "",
    "torch.nn.modules.linear.Identity": "",
    "torch.nn.modules.linear.Linear": "weight bias",
    "torch.nn.modules.normalization.LayerNorm": "weight bias",
}
# what is the identity in eval mode
DROPS = ("Identity", "Dropout", "DropPath", "PatchDropout")
_BLOCKS = "torch.nn.modules.container.Sequential"


def check_modules(model: nn.Module) -> None:
    """ValueError where a forward pass may depend on more than is read below."""
    for path, module in model.named_modules():
        path, cls = path or "the model", type(module)
        name = named(module)
        if name not in _KNOWN and name != _BLOCKS:
            raise ValueError(f"{path} is {name}, which from_timm does not support")
        theirs = [n for n in vars(module) if inspect.isfunction(getattr(cls, n, None))]
        theirs += [
            n for n, f in vars(cls).items() if inspect.isfunction(f) and f.__module__ != cls.__module__
        ]  # fmt: skip
        if theirs:
            raise ValueError(
                f"{path} has a {theirs[0]} of its own, which would be left out: remove it first"
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"{path} has forward hooks, which would be left out: remove them first"
            )
        if name == _BLOCKS:
            continue
        held = {**module._parameters, **module._buffers, **module._modules}
        found = {n for n, value in held.items() if value is not None}
        if name.startswith("timm."):
            found |= {n for n, value in vars(module).items() if value is True and n[0] != "_"}
        if unknown := found - {*_KNOWN[name].split(), "training"}:
            raise ValueError(
                f"{path} has {', '.join(sorted(unknown))}, which from_timm does not know"
            )


def check_dropout(model: nn.Module) -> None:
    if not any(module.training for module in model.modules()):
        return
    for path, module in model.named_modules():
        for p in (getattr(module, name, 0) for name in ("p", "drop_prob", "prob")):
            if p:
                raise ValueError(
                    f"{path} drops out {p} in training mode, which a ViT never does: call model.eval() first"
                )


def at(model: nn.Module, path: str, *classes: str) -> Any:
    """What is at `path`; its class must be one of these. Which module a class is from, check_modules has seen."""
    found = model
    for name in path.split("."):
        found = getattr(found, name, None)
    if type(found).__name__ not in classes:
        expected = " or ".join(c for c in classes if c != "NoneType")
        raise ValueError(f"{path} is {named(found)}, expected {expected}")
    return found


def is_a(module: nn.Module, name: str) -> bool:
    return type(module).__name__ == name


def named(module: object) -> str:
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}"
