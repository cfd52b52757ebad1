"""Google's ViT, in transformers' ViTModel and ViTForImageClassification (Dosovitskiy et al. 2020, arXiv:2010.11929).

A class token, learned positions, q, k and v each a Linear of its own, erf-GELU, a final LayerNorm. ViTModel may have a
pooler, tanh(dense(class token)); the classifier takes the class token itself.
"""

from dataclasses import replace

import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification, ViTModel
from transformers.activations import ACT2FN
from transformers.models.vit import modeling_vit

from vit_fast.spec import ACTIVATIONS, POOLER_ACTIVATIONS, ViTSpec

MODEL_TYPE = "vit"
MODELS = (ViTModel, ViTForImageClassification)
VERSIONS = "transformers >= 5.17, < 6"

# transformers' name -> ours, where they differ
_ACTIVATION_NAMES = {
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "swish": "silu",
}


def spec_from_config(config: ViTConfig) -> ViTSpec:
    """The encoder alone, without pooler or head. ValueError names what this runtime does not compute."""
    patch = _pair(config.patch_size)
    if patch[0] != patch[1]:
        raise ValueError(f"patch_size {patch}: only square patches are supported")
    return ViTSpec(
        family=MODEL_TYPE,
        image_size=_pair(config.image_size),
        patch=patch[0],
        channels=config.num_channels,
        dim=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_dim=getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
        mlp_dim=config.intermediate_size,
        eps=config.layer_norm_eps,
        activation=_activation("hidden_act", config.hidden_act, ACTIVATIONS),
        qkv_bias=config.qkv_bias,
    )


def spec_from_model(model: PreTrainedModel) -> ViTSpec:
    """As spec_from_config, with the pooler or the head that the model has, and its LayerNorms' own eps."""
    encoder = _encoder(model)
    norms = [m for m in encoder.modules() if isinstance(m, nn.LayerNorm)]
    if len({norm.eps for norm in norms}) != 1:
        raise ValueError(
            f"LayerNorms of different eps, {sorted({norm.eps for norm in norms})}: expected one"
        )
    spec = replace(spec_from_config(model.config), eps=norms[0].eps)
    if encoder.pooler is not None:
        act = _activation("pooler_act", model.config.pooler_act, POOLER_ACTIVATIONS)
        spec = replace(spec, pooler_dim=encoder.pooler.dense.out_features, pooler_activation=act)
    if _has_head(model):
        spec = replace(spec, num_labels=model.classifier.out_features)
    return spec


def sources(model: PreTrainedModel) -> dict[str, tuple[Tensor, ...]]:
    """timm's name -> the model's live parameters that make it up, concatenated on axis 0.

    ValueError where a module is not exactly the stock class: `.weight` of a LoRA wrapper would leave the adapter out.
    """
    encoder = _encoder(model)
    embeddings = _child(encoder, "embeddings", modeling_vit.ViTEmbeddings)
    patches = _child(embeddings, "patch_embeddings", modeling_vit.ViTPatchEmbeddings)
    found: dict[str, tuple[Tensor, ...]] = {
        "cls_token": (_attribute(embeddings, "cls_token"),),
        "pos_embed": (_attribute(embeddings, "position_embeddings"),),
    }

    def add(name: str, *modules: nn.Module) -> None:
        found[f"{name}.weight"] = tuple(m.weight for m in modules)
        if len({m.bias is None for m in modules}) > 1:
            raise ValueError(f"{name}: q, k and v must all have a bias or none, some have one here")
        if modules[0].bias is not None:
            found[f"{name}.bias"] = tuple(m.bias for m in modules)

    add("patch_embed.proj", _child(patches, "projection", nn.Conv2d))
    activation = type(ACT2FN[model.config.hidden_act])
    for i, layer in enumerate(_attribute(encoder, "layers")):
        _exactly(layer, f"layers.{i}", modeling_vit.ViTLayer)
        attention = _child(layer, "attention", modeling_vit.ViTAttention)
        mlp = _child(layer, "mlp", modeling_vit.ViTMLP)
        if attention.scaling != attention.head_dim**-0.5:
            raise ValueError(
                f"layers.{i}.attention.scaling is {attention.scaling}, not 1 / sqrt(head_dim)"
            )
        _child(mlp, "activation_fn", activation)
        add(f"blocks.{i}.norm1", _child(layer, "layernorm_before", nn.LayerNorm))
        add(f"blocks.{i}.attn.qkv", *(_child(attention, f"{x}_proj", nn.Linear) for x in "qkv"))
        add(f"blocks.{i}.attn.proj", _child(attention, "o_proj", nn.Linear))
        add(f"blocks.{i}.norm2", _child(layer, "layernorm_after", nn.LayerNorm))
        add(f"blocks.{i}.mlp.fc1", _child(mlp, "fc1", nn.Linear))
        add(f"blocks.{i}.mlp.fc2", _child(mlp, "fc2", nn.Linear))
    add("norm", _child(encoder, "layernorm", nn.LayerNorm))
    if _attribute(encoder, "pooler") is not None:
        pooler = _child(encoder, "pooler", modeling_vit.ViTPooler)
        _child(pooler, "activation", type(ACT2FN[model.config.pooler_act]))
        add("pooler", _child(pooler, "dense", nn.Linear))
    if _has_head(model):
        add("head", _child(model, "classifier", nn.Linear))
    return found


def _encoder(model: PreTrainedModel) -> ViTModel:
    return model if type(model) is ViTModel else _child(model, "vit", ViTModel)


def _has_head(model: PreTrainedModel) -> bool:
    # transformers puts an Identity where num_labels is 0
    return type(model) is ViTForImageClassification and type(model.classifier) is not nn.Identity


def _attribute(module: nn.Module, name: str) -> nn.Module | Tensor | None:
    if not hasattr(module, name):
        raise ValueError(
            f"{type(module).__name__} of transformers {transformers.__version__} has no {name!r}: "
            f"this layout is unknown, supported are {VERSIONS}"
        )
    return getattr(module, name)


def _child(module: nn.Module, name: str, expected: type) -> nn.Module:
    return _exactly(_attribute(module, name), f"{type(module).__name__}.{name}", expected)


def _exactly(module: nn.Module, name: str, expected: type) -> nn.Module:
    if type(module) is not expected:
        raise ValueError(
            f"{name} is {type(module).__module__}.{type(module).__name__}, expected exactly {expected.__name__}: "
            "merge adapters into the weights, or undo the quantization, first"
        )
    if "forward" in vars(module):
        raise ValueError(
            f"{name} has a forward of its own, which would be left out: remove it first"
        )
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    # transformers puts hooks of its own on layers to record their outputs
    if any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks):
        raise ValueError(f"{name} has forward hooks, which would be left out: remove them first")
    return module


def _activation(field: str, name: str, known: tuple[str, ...]) -> str:
    ours = _ACTIVATION_NAMES.get(name, name)
    if ours not in known:
        raise ValueError(f"{field} {name!r} is not supported, only {', '.join(known)}")
    return ours


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """(height, width)"""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
