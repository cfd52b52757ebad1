"""Google's ViT, in transformers' ViTModel and ViTForImageClassification (Dosovitskiy et al. 2020, arXiv:2010.11929).

A class token, learned positions, q, k and v each a Linear of its own, erf-GELU, a final LayerNorm. ViTModel may have a
pooler, tanh(dense(class token)); the classifier takes the class token itself.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, ViTForImageClassification, ViTModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.vit import modeling_vit
from transformers.utils import ModelOutput

from vit_fast.families.calls import Defaults, Request, output_of, states_wanted
from vit_fast.families.modules import attribute, child, exactly, parameter, parameters_of, remember
from vit_fast.spec import ACTIVATIONS, POOLER_ACTIVATIONS, ViTSpec

MODEL_TYPE = "vit"
MODELS = (ViTModel, ViTForImageClassification)
# plain attributes that change what a forward pass computes
WATCHED = {
    modeling_vit.ViTEmbeddings: ("image_size", "patch_size"),
    modeling_vit.ViTPatchEmbeddings: ("num_channels",),
    nn.Conv2d: ("stride", "padding", "dilation", "groups"),
    nn.Dropout: ("p", "training"),
    nn.LayerNorm: ("eps",),
    modeling_vit.ViTAttention: (
        "config",
        "head_dim",
        "scaling",
        "is_causal",
        "attention_dropout",
        "training",
    ),
    ViTModel: ("config",),
}

# transformers' name -> ours, where they differ
_ACTIVATION_NAMES = {
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "swish": "silu",
}


def encoder_spec(encoder: ViTModel) -> ViTSpec:
    """What the live modules say, rather than the config: a user may have taken layers away or changed an eps.

    Without pooler and head. ValueError names what this runtime does not compute.
    """
    embeddings, layers = encoder.embeddings, encoder.layers
    conv = embeddings.patch_embeddings.projection
    if conv.kernel_size[0] != conv.kernel_size[1]:
        raise ValueError(f"patch_size {conv.kernel_size}: only square patches are supported")
    if not len(layers):
        raise ValueError("the encoder has no layers")
    if _pair(embeddings.patch_size) != conv.kernel_size:
        raise ValueError(
            f"embeddings.patch_size is {embeddings.patch_size}, of patches {conv.kernel_size}"
        )
    norms = [encoder.layernorm, *(n for x in layers for n in (x.layernorm_before, x.layernorm_after))]  # fmt: skip
    if len({norm.eps for norm in norms}) != 1:
        raise ValueError(
            f"LayerNorms of different eps, {sorted({norm.eps for norm in norms})}: expected one"
        )
    attention, inner = layers[0].attention, layers[0].attention.q_proj.out_features
    return ViTSpec(
        family=MODEL_TYPE,
        image_size=tuple(embeddings.image_size),
        patch=conv.kernel_size[0],
        channels=embeddings.patch_embeddings.num_channels,
        dim=conv.out_channels,
        depth=len(layers),
        heads=inner // attention.head_dim,
        head_dim=attention.head_dim,
        mlp_dim=layers[0].mlp.fc1.out_features,
        eps=norms[0].eps,
        activation=_activation("hidden_act", encoder.config.hidden_act, ACTIVATIONS),
        qkv_bias=attention.q_proj.bias is not None,
    )


def spec_from_model(model: PreTrainedModel) -> ViTSpec:
    """As encoder_spec, with the pooler or the head that the model has."""
    encoder = encoder_of(model)
    spec = encoder_spec(encoder)
    if encoder.pooler is not None:
        act = _activation("pooler_act", model.config.pooler_act, POOLER_ACTIVATIONS)
        spec = replace(spec, pooler_dim=encoder.pooler.dense.out_features, pooler_activation=act)
    if _has_head(model):
        spec = replace(spec, num_labels=model.classifier.out_features)
    return spec


def encoder_sources(encoder: ViTModel) -> dict[str, tuple[Tensor, ...]]:
    """timm's name -> the live parameters that make it up, concatenated on axis 0; without pooler and head.

    ValueError where a module is not exactly the stock class: `.weight` of a LoRA wrapper would leave the adapter out.
    """
    embeddings = child(encoder, "embeddings", modeling_vit.ViTEmbeddings)
    patches = child(embeddings, "patch_embeddings", modeling_vit.ViTPatchEmbeddings)
    child(embeddings, "dropout", nn.Dropout)
    conv = child(patches, "projection", nn.Conv2d)
    form = conv.stride, conv.padding, conv.dilation, conv.groups
    if form != (conv.kernel_size, (0, 0), (1, 1), 1):
        raise ValueError(
            f"patch_embeddings.projection has stride, padding, dilation, groups {form}: expected patches side by side"
        )
    found: dict[str, tuple[Tensor, ...]] = {
        "cls_token": (parameter(embeddings, "cls_token"),),
        "pos_embed": (parameter(embeddings, "position_embeddings"),),
        **parameters_of("patch_embed.proj", conv),
    }
    activation = type(ACT2FN[encoder.config.hidden_act])
    for i, layer in enumerate(attribute(encoder, "layers")):
        exactly(layer, f"layers.{i}", modeling_vit.ViTLayer)
        attention = child(layer, "attention", modeling_vit.ViTAttention)
        mlp = child(layer, "mlp", modeling_vit.ViTMLP)
        if attention.scaling != attention.head_dim**-0.5 or attention.is_causal:
            raise ValueError(
                f"layers.{i}.attention has scaling {attention.scaling} and is_causal {attention.is_causal}, "
                "expected 1 / sqrt(head_dim) and False"
            )
        if attention.head_dim != encoder.layers[0].attention.head_dim:
            raise ValueError(f"layers.{i}.attention has another head_dim than layers.0")
        child(layer, "dropout", nn.Dropout)
        child(mlp, "activation_fn", activation)
        found |= parameters_of(f"blocks.{i}.norm1", child(layer, "layernorm_before", nn.LayerNorm))
        projections = (child(attention, f"{x}_proj", nn.Linear) for x in "qkv")
        found |= parameters_of(f"blocks.{i}.attn.qkv", *projections)
        found |= parameters_of(f"blocks.{i}.attn.proj", child(attention, "o_proj", nn.Linear))
        found |= parameters_of(f"blocks.{i}.norm2", child(layer, "layernorm_after", nn.LayerNorm))
        found |= parameters_of(f"blocks.{i}.mlp.fc1", child(mlp, "fc1", nn.Linear))
        found |= parameters_of(f"blocks.{i}.mlp.fc2", child(mlp, "fc2", nn.Linear))
    return found | parameters_of("norm", child(encoder, "layernorm", nn.LayerNorm))


def sources(model: PreTrainedModel) -> dict[str, tuple[Tensor, ...]]:
    """As encoder_sources, with pooler and head."""
    encoder = encoder_of(model)
    found = encoder_sources(encoder)
    if attribute(encoder, "pooler") is not None:
        pooler = child(encoder, "pooler", modeling_vit.ViTPooler)
        child(pooler, "activation", type(ACT2FN[model.config.pooler_act]))
        found |= parameters_of("pooler", child(pooler, "dense", nn.Linear))
    if _has_head(model):
        found |= parameters_of("head", child(model, "classifier", nn.Linear))
    return found


remember(ViTModel, ViTForImageClassification, nn.Conv2d, nn.Dropout, nn.LayerNorm, nn.Linear)
remember(
    *(
        cls
        for cls in vars(modeling_vit).values()
        if isinstance(cls, type) and issubclass(cls, nn.Module)
    )
)
_interpolate = modeling_vit.ViTEmbeddings.interpolate_pos_encoding


def _resizes_positions(embeddings: nn.Module) -> bool:
    """Whether interpolate_pos_encoding works, and is transformers' own."""
    native = embeddings.image_size
    return (
        native[0] == native[1]
        and type(embeddings.patch_size) is int
        and "interpolate_pos_encoding" not in vars(embeddings)
        and type(embeddings).interpolate_pos_encoding is _interpolate
    )


def encoder_of(model: PreTrainedModel) -> ViTModel:
    if isinstance(model, ViTModel):
        return model
    return child(model, "vit", ViTModel)


def configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """All that transformers' own forward reads, the encoder's first; mostly they are one and the same object."""
    encoder = encoder_of(model)
    found = [encoder.config, model.config, *(layer.attention.config for layer in encoder.layers)]
    return list({id(config): config for config in found}.values())


def encoder_parts(model: PreTrainedModel) -> list[nn.Module]:
    """The modules inside `model` that a fast call never calls: all but the root, pooler and classifier."""
    if isinstance(model, ViTModel):
        return [model.embeddings, model.layers, model.layernorm]
    return [model.vit]


def _has_head(model: PreTrainedModel) -> bool:
    # transformers puts an Identity where num_labels is 0
    return (
        isinstance(model, ViTForImageClassification) and type(model.classifier) is not nn.Identity
    )


def _activation(field: str, name: str, known: tuple[str, ...]) -> str:
    ours = _ACTIVATION_NAMES.get(name, name)
    if ours not in known:
        raise ValueError(f"{field} {name!r} is not supported, only {', '.join(known)}")
    return ours


def request(
    spec: ViTSpec,
    device: torch.device,
    model: PreTrainedModel,
    arguments: dict[str, Any],
    defaults: Defaults,
) -> Request | str:
    """What a call with these arguments by name asks for, or why transformers' own forward has to answer."""
    take = arguments.pop
    pixels = take("pixel_values", None)
    labels = take("labels", None)
    loss = {}
    if labels is not None and "num_items_in_batch" in arguments:
        # given by Trainer; of the model only the loss reads it
        loss = {"num_items_in_batch": take("num_items_in_batch")}
    resize = take("interpolate_pos_encoding", None)
    attentions = take("output_attentions", defaults.attentions)
    asked = take("output_hidden_states", defaults.hidden_states)
    as_dict = take("return_dict", True)
    for name, value in arguments.items():
        if value is not None or name not in ("bool_masked_pos", "attention_mask"):
            return f"{name} is given"
    if attentions:
        return "output_attentions is asked for"
    if type(pixels) not in (Tensor, nn.Parameter) or pixels.dim() != 4:
        return "pixel_values are not a plain tensor [B, C, H, W]"
    batch, channels, height, width = pixels.shape
    if not batch or channels != spec.channels or pixels.device != device:
        return f"pixel_values {tuple(pixels.shape)} on {pixels.device} do not fit the model"
    bare = isinstance(model, ViTModel)
    encoder, native = model if bare else model.vit, spec.image_size
    if resize and not _resizes_positions(encoder.embeddings):
        return (
            "interpolate_pos_encoding of positions that are not square, or by a method of your own"
        )
    if (height, width) != native and not (resize and min(height, width) >= spec.patch):
        return f"pixel_values of {height} x {width} for a model of {native[0]} x {native[1]}"
    states = states_wanted(encoder, asked, spec.depth) if asked else ()
    if type(states) is str:
        return states
    as_tuple = as_dict is False if bare else as_dict is not None and not as_dict
    return Request(pixels, states, bool(asked), as_tuple, labels, loss)


def rows(model: PreTrainedModel) -> int | None:
    """How many tokens the answer needs of the last block, None for all."""
    return None if isinstance(model, ViTModel) else 1


def answer(
    model: PreTrainedModel,
    request: Request,
    tokens: Tensor,
    states: tuple[Tensor | None, ...] | None,
) -> ModelOutput:
    """What transformers returns. Pooler and classifier are the live modules, with all that hangs on them."""
    if isinstance(model, ViTModel):
        pooled = None if model.pooler is None else model.pooler(tokens)
        return output_of(
            BaseModelOutputWithPooling,
            last_hidden_state=tokens,
            pooler_output=pooled,
            hidden_states=states,
            attentions=None,
        )
    logits, loss = model.classifier(tokens[:, 0, :]), None
    if request.labels is not None:
        loss = model.loss_function(request.labels, logits, model.config, **request.loss)
    return output_of(
        ImageClassifierOutput, loss=loss, logits=logits, hidden_states=states, attentions=None
    )


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
