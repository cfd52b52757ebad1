"""A live VisionTransformer of timm -> ViTSpec and weights: all that its forward pass in eval mode depends on.

timm_modules.py has seen that there is nothing else. Checked against timm 1.0.31.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vit_fast.families import check_tensors
from vit_fast.spec import ViTSpec
from vit_fast.timm_modules import DROPS, MODEL, at, check_dropout, check_modules, is_a, named
from vit_fast.weights import Normalization

_ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}

Sources = dict[str, tuple[Tensor, ...]]


def bind(model: nn.Module) -> tuple[ViTSpec, Sources]:
    """A VisionTransformer of timm -> its spec, and the parameters that make up each of a ViT's, by name.

    ValueError names what is not supported.
    """
    if named(model) != MODEL:
        raise ValueError(f"from_timm takes exactly a {MODEL}, got a {named(model)}")
    check_modules(model)
    check_dropout(model)
    embedding, sources = _embedding(model)
    fields, more = _blocks(model)
    sources |= more
    head, more = _head(model, fields)
    sources |= more
    spec = ViTSpec(family="timm", **embedding, **fields, **head)
    check_tensors(sources)
    return spec, sources


def normalization_of(model: nn.Module) -> Normalization | None:
    """Mean and std of the model's pretrained_cfg, of bytes divided by 255; None where it has none for its channels."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if not isinstance(config, Mapping):
        return None
    channels = model.patch_embed.proj.in_channels
    mean, std = (tuple(config.get(name) or ()) for name in ("mean", "std"))
    # timm takes one value for all channels
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    return Normalization(1 / 255, mean, std) if len(mean) == len(std) == channels else None


def _embedding(model: nn.Module) -> tuple[dict[str, Any], Sources]:
    """All before the blocks."""
    patches = at(model, "patch_embed", "PatchEmbed")
    conv = at(model, "patch_embed.proj", "Conv2d")
    at(model, "patch_embed.norm", "Identity")
    for name in ("pos_drop", "patch_drop"):
        at(model, name, *DROPS)
    pre_norm = at(model, "norm_pre", "Identity", "LayerNorm")
    size, patch = patches.img_size, conv.kernel_size
    if patch[0] != patch[1]:
        raise ValueError(f"patches of {patch[0]} x {patch[1]}: only square ones are supported")
    if patches.patch_size != patch or size is None:
        raise ValueError(
            f"patch_embed has patch_size {patches.patch_size} and img_size {size} for patches of {patch}"
        )
    form = conv.stride, conv.padding, conv.dilation, conv.groups
    if form != (patch, (0, 0), (1, 1), 1):
        raise ValueError(
            f"patch_embed.proj has stride, padding, dilation, groups {form}: expected patches side by side"
        )
    if getattr(patches, "dynamic_img_pad", False):
        raise ValueError("dynamic_img_pad is not supported: pad the images yourself")
    # a map of patches where positions are resized, rows of them where not
    dynamic, made = model.dynamic_img_size, (patches.flatten, patches.output_fmt)
    if made != ((False, "NHWC") if dynamic else (True, "NCHW")):
        raise ValueError(
            f"patch_embed has flatten, output_fmt {made}, which does not go with dynamic_img_size {dynamic}"
        )
    prefix = sum(t.shape[1] for t in (model.cls_token, model.reg_token) if t is not None)
    if model.num_prefix_tokens != prefix:
        raise ValueError(f"num_prefix_tokens is {model.num_prefix_tokens}, of {prefix} tokens")
    if prefix and model.pos_embed is None:
        # releases differ: timm 1.0.15 leaves the prefix tokens out
        raise ValueError(
            f"a model with no position table and {prefix} prefix tokens is not supported"
        )
    placed = model.pos_embed is not None and not model.no_embed_class
    fields = dict(
        image_size=tuple(size),
        patch=patch[0],
        channels=conv.in_channels,
        dim=conv.out_channels,
        patch_bias=conv.bias is not None,
        class_token=model.cls_token is not None,
        registers=0 if model.reg_token is None else model.reg_token.shape[1],
        positions=model.pos_embed is not None,
        position_prefix=prefix if placed else 0,
        resize="bicubic antialias fp32",  # resample_abs_pos_embed
        pre_norm=is_a(pre_norm, "LayerNorm"),
    )
    sources = {
        name: (getattr(model, name),)
        for name in ("cls_token", "reg_token", "pos_embed")
        if getattr(model, name) is not None
    }
    return fields, sources | _weights("patch_embed.proj", conv) | _weights("norm_pre", pre_norm)


def _blocks(model: nn.Module) -> tuple[dict[str, Any], Sources]:
    blocks = at(model, "blocks", "Sequential")
    if not len(blocks):
        raise ValueError("the model has no blocks")
    found, sources = [], {}
    for i in range(len(blocks)):
        fields, more = _block(model, f"blocks.{i}")
        found.append(fields)
        sources |= more
    for name in found[0]:
        if len(values := {fields[name] for fields in found}) != 1:
            raise ValueError(
                f"the blocks differ in {name}, {sorted(values, key=str)}: expected one"
            )
    return found[0] | dict(depth=len(blocks)), sources


def _block(model: nn.Module, path: str) -> tuple[dict[str, Any], Sources]:
    """The block at `path`: the fields of a ViTSpec that it says, and its parameters."""
    at(model, path, "Block")
    for name in ("drop_path1", "drop_path2", "attn.attn_drop", "attn.proj_drop"):
        at(model, f"{path}.{name}", *DROPS)
    norms = [at(model, f"{path}.{name}", "LayerNorm") for name in ("norm1", "norm2")]
    attention = at(model, f"{path}.attn", "Attention")
    qkv, proj = (at(model, f"{path}.attn.{name}", "Linear") for name in ("qkv", "proj"))
    for name in ("q_norm", "k_norm", "norm"):
        at(model, f"{path}.attn.{name}", "Identity", "NoneType")
    _check_heads(attention, f"{path}.attn")
    scales = [at(model, f"{path}.{name}", "Identity", "LayerScale") for name in ("ls1", "ls2")]
    if named(scales[0]) != named(scales[1]):
        raise ValueError(f"{path} has a LayerScale behind one of its two layers alone")
    mlp, parts = _mlp(model, f"{path}.mlp", "Mlp", "GluMlp", "SwiGLU")
    fields = dict(
        heads=attention.num_heads,
        head_dim=attention.head_dim,
        eps=_one_eps(norms, path),
        qkv_bias=qkv.bias is not None,
        proj_bias=proj.bias is not None,
        layer_scale=is_a(scales[0], "LayerScale"),
    )
    linears = {"norm1": norms[0], "attn.qkv": qkv, "attn.proj": proj, "norm2": norms[1]}
    for name, module in linears.items():
        parts |= _weights(f"{path}.{name}", module)
    for name, scale in zip(("ls1", "ls2"), scales):
        if fields["layer_scale"]:
            parts[f"{path}.{name}.gamma"] = (scale.gamma,)
    return fields | mlp, parts


def _mlp(model: nn.Module, path: str, *classes: str) -> tuple[dict[str, Any], Sources]:
    mlp = at(model, path, *classes)
    split = ("fc1_g", "fc1_x") if is_a(mlp, "SwiGLU") else ("fc1",)
    first = [at(model, f"{path}.{name}", "Linear") for name in split]
    fc2 = at(model, f"{path}.fc2", "Linear")
    at(model, f"{path}.norm", "Identity", "NoneType")
    for name in ("drop1", "drop2"):
        at(model, f"{path}.{name}", *DROPS)
    act = at(model, f"{path}.act", *_ACTIVATIONS)
    name = _ACTIVATIONS[type(act).__name__]
    if getattr(act, "approximate", "none") == "tanh":
        name = "gelu_tanh"
    parts = _weights(f"{path}.fc1", *first)
    if is_a(mlp, "GluMlp"):
        if mlp.chunk_dim != -1:
            raise ValueError(f"{path} has chunk_dim {mlp.chunk_dim}, expected -1")
        if mlp.gate_last:
            parts = {key: tuple(reversed(whole[0].chunk(2))) for key, whole in parts.items()}
    fields = dict(
        mlp_dim=fc2.in_features,
        activation=name,
        gated=not is_a(mlp, "Mlp"),
        mlp_bias=fc2.bias is not None,
    )
    return fields, parts | _weights(f"{path}.fc2", fc2)


def _head(model: nn.Module, block: dict[str, Any]) -> tuple[dict[str, Any], Sources]:
    """The final norm, the pooling and the head."""
    norm, fc_norm = (at(model, name, "Identity", "LayerNorm") for name in ("norm", "fc_norm"))
    at(model, "head_drop", *DROPS)
    head = at(model, "head", "Identity", "Linear")
    kinds = {"token": "token", "avg": "patches", "map": "attention"}
    how, pool = model.global_pool, getattr(model, "attn_pool", None)
    if how not in kinds or (how == "map") != (pool is not None):
        raise ValueError(
            f"global_pool {how!r} with attn_pool {named(pool)} is not supported, only {', '.join(kinds)}: "
            "for tokens alone, call model.reset_classifier(0, 'token'), or 'avg' without a class token"
        )
    whole = getattr(model, "pool_include_prefix", False)
    if model.num_prefix_tokens and how != "token" and whole != (how == "map"):
        raise ValueError(
            f"pool_include_prefix {whole} is not supported with global_pool {how!r} and prefix tokens"
        )
    if is_a(norm, "LayerNorm") == is_a(fc_norm, "LayerNorm"):
        raise ValueError(
            f"norm is {named(norm)} and fc_norm {named(fc_norm)}: expected one LayerNorm, "
            "final_norm=False is not supported"
        )
    norms = [m for m in (norm, fc_norm, model.norm_pre) if is_a(m, "LayerNorm")]
    last = norm if is_a(norm, "LayerNorm") else fc_norm
    sources = _weights("norm", last) | _weights("head", head)
    if pool is not None:
        norms.append(at(model, "attn_pool.norm", "LayerNorm"))
        sources |= _attention_pool(model, block)
    if (eps := _one_eps(norms, "the model")) != block["eps"]:
        raise ValueError(f"LayerNorms of different eps, {block['eps']} and {eps}: expected one")
    fields = dict(norm_tokens=last is norm, pool=kinds[how])
    if is_a(head, "Linear"):
        fields |= dict(num_labels=head.out_features, head_bias=head.bias is not None)
    return fields, sources


def _attention_pool(model: nn.Module, block: dict[str, Any]) -> Sources:
    pool = at(model, "attn_pool", "AttentionPoolLatent")
    for name in ("q_norm", "k_norm"):
        at(model, f"attn_pool.{name}", "Identity")
    at(model, "attn_pool.proj_drop", *DROPS)
    _check_heads(pool, "attn_pool")
    if pool.pos_embed is not None or pool.pool != "token":
        raise ValueError("attn_pool has pos_embed or a pool_type other than 'token'")
    q, kv, proj = (at(model, f"attn_pool.{name}", "Linear") for name in ("q", "kv", "proj"))
    fields, sources = _mlp(model, "attn_pool.mlp", "Mlp")
    # one field of the spec is for both
    for name, value in {"heads": pool.num_heads, "activation": fields["activation"]}.items():
        if value != block[name]:
            raise ValueError(f"attn_pool has {name} {value!r}, the blocks have {block[name]!r}")
    sources |= _weights("attn_pool.qkv", q, kv) | _weights("attn_pool.proj", proj)
    return sources | _weights("attn_pool.norm", pool.norm) | {"attn_pool.latent": (pool.latent,)}


def _check_heads(attention: nn.Module, path: str) -> None:
    if attention.scale != attention.head_dim**-0.5:
        raise ValueError(f"{path} has scale {attention.scale}, expected 1 / sqrt(head_dim)")


def _one_eps(norms: list[nn.Module], path: str) -> float:
    if len(values := {norm.eps for norm in norms}) != 1:
        raise ValueError(f"{path} has LayerNorms of different eps, {sorted(values)}: expected one")
    return values.pop()


def _weights(name: str, *modules: nn.Module) -> Sources:
    """`name`.weight and .bias, one below the other, of those modules that have them: an Identity has none."""
    kinds = {
        f"{name}.{kind}": tuple(t for m in modules if (t := m._parameters.get(kind)) is not None)
        for kind in ("weight", "bias")
    }
    return {key: parts for key, parts in kinds.items() if parts}
