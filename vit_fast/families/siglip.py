"""SigLIP (Zhai et al. 2023, arXiv:2303.15343), and what SigLIP 2, Idefics, SmolVLM and CLIP share with it.

Patches and nothing else, learned positions, tanh-GELU, a final LayerNorm; the pooled output is what a learned query
makes of all tokens, by PyTorch's MultiheadAttention and an MLP. A model whose config has no use for that head (the
encoder of PaliGemma, say) pools nothing: ViT then takes the mean of the patches, as SiglipForImageClassification does.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import (
    PreTrainedModel,
    SiglipForImageClassification,
    SiglipModel,
    SiglipVisionModel,
)
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip import modeling_siglip
from transformers.utils import ModelOutput

from vit_fast.families.calls import Answer, Defaults, Request, output_of
from vit_fast.families.family import Family, Form, Sources, conv_sources, conv_spec, pair
from vit_fast.families.layout import Layout
from vit_fast.families.modules import attribute, child, parameter, parameters_of
from vit_fast.spec import ViTSpec


def layout_of_siglip(layer: type, attention: type, mlp: type) -> Layout:
    """The layer of SigLIP, of which the others have copies."""
    return Layout(
        layer=layer,
        inner={"self_attn": attention, "mlp": mlp},
        attention="self_attn",
        norm1="layer_norm1",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        proj="self_attn.out_proj",
        norm2="layer_norm2",
        fc1=("mlp.fc1",),
        fc2="mlp.fc2",
        activation="mlp.activation_fn",
        scale="scale",
        attributes=("config", "is_causal", "dropout", "training"),
    )


def answer_tower(model: PreTrainedModel, request: Request, found: Answer) -> ModelOutput:
    return output_of(
        BaseModelOutputWithPooling,
        last_hidden_state=found.tokens,
        pooler_output=found.kept.get("pooled"),
        hidden_states=found.states,
        attentions=None,
    )


class LikeSiglip(Family):
    """Embeddings and pooling head of SigLIP and its like."""

    layers = "encoder.layers"
    norm = "post_layernorm"
    stack: type[nn.Module]  # the class that holds the layers
    pooling: type[nn.Module] | None = None  # the class of the head, in a family that has one

    def __init__(self) -> None:
        self.watched = {
            nn.Embedding: ("max_norm",),
            nn.MultiheadAttention: (*_ATTENTION, "dropout", "training"),
            **self.watched,
        }
        super().__init__()

    def pools(self, encoder: PreTrainedModel) -> bool:
        return self.pooling is not None and bool(getattr(encoder, "use_head", False))

    def embedding_spec(self, encoder: PreTrainedModel) -> dict[str, Any]:
        embeddings = encoder.embeddings
        fields = conv_spec(embeddings.patch_embedding)
        if embeddings.patch_size != fields["patch"]:
            raise ValueError(
                f"embeddings.patch_size is {embeddings.patch_size}, of patches {fields['patch']}"
            )
        return fields | dict(
            image_size=pair(embeddings.image_size),
            class_token=False,
            position_prefix=0,
            pool="attention" if self.pools(encoder) else "patches",
        )

    def embedding_sources(self, encoder: PreTrainedModel) -> Sources:
        child(encoder, "encoder", self.stack)
        embeddings = child(encoder, "embeddings", self.embeddings)
        found = {"pos_embed": (self.positions(embeddings),)}
        found |= self.patch_sources(embeddings)
        return found | self.head_sources(encoder) if self.pools(encoder) else found

    def patch_sources(self, embeddings: nn.Module) -> Sources:
        return conv_sources(embeddings, "patch_embedding")

    def positions(self, embeddings: nn.Module) -> Tensor:
        """[P, D]"""
        table = child(embeddings, "position_embedding", nn.Embedding)
        if table.max_norm is not None:
            raise ValueError("position_embedding has a max_norm: expected none")
        return parameter(table, "weight")

    def head_sources(self, encoder: PreTrainedModel) -> Sources:
        """Of the attention pooling, whose MultiheadAttention is what transformers makes of PyTorch's."""
        head = child(encoder, "head", self.pooling)
        attention = child(head, "attention", nn.MultiheadAttention)
        layers = encoder.encoder.layers
        dim = parameter(head, "probe").shape[-1]
        heads = dim // layers[0].self_attn.head_dim
        values = tuple(getattr(attention, name) for name in _ATTENTION)
        expected = (dim, dim, dim, True, heads, True, False)
        extra = [attention.bias_k, attention.bias_v]
        in_proj = [parameter(attention, f"in_proj_{name}") for name in ("weight", "bias")]
        if values != expected or extra != [None, None] or any(t is None for t in in_proj):
            found = dict(zip(_ATTENTION, values))
            raise ValueError(
                f"head.attention has {found}, expected {expected}, no bias_k and no bias_v"
            )
        if head.layernorm.eps != layers[0].layer_norm1.eps:
            raise ValueError(f"head.layernorm has eps {head.layernorm.eps}, unlike the layers'")
        mlp = child(head, "mlp", self.layouts[0].inner["mlp"])
        child(mlp, "activation_fn", type(ACT2FN[self.activation(encoder)]))
        found = {"attn_pool.latent": (parameter(head, "probe"),)}
        found |= {f"attn_pool.qkv.{a}": (t,) for a, t in zip(("weight", "bias"), in_proj)}
        for name, module in (
            ("proj", child(attention, "out_proj", NonDynamicallyQuantizableLinear)),
            ("norm", child(head, "layernorm", nn.LayerNorm)),
            ("mlp.fc1", child(mlp, "fc1", nn.Linear)),
            ("mlp.fc2", child(mlp, "fc2", nn.Linear)),
        ):
            found |= parameters_of(f"attn_pool.{name}", module)
        return found

    def head(self, model: PreTrainedModel, encoder: PreTrainedModel) -> tuple[dict, Sources]:
        classifier = getattr(model, "classifier", None)
        # transformers puts an Identity where num_labels is 0
        if classifier is None or type(classifier) is nn.Identity:
            return {}, {}
        sources = parameters_of("head", child(model, "classifier", nn.Linear))
        return dict(num_labels=classifier.out_features, head_pool="patches"), sources

    def request(
        self,
        spec: ViTSpec,
        device: torch.device,
        model: PreTrainedModel,
        arguments: dict[str, Any],
        defaults: Defaults,
    ) -> Request | str:
        pools = self.pools(model)
        if pools != (spec.pool == "attention"):
            return "use_head was changed"
        # a plain attribute where it is None, a parameter where it is not: so it cannot be watched as either
        if pools and model.head.attention.bias_k is not None:
            return "head.attention has a bias_k"
        return super().request(spec, device, model, arguments, defaults)


# what its forward reads of a MultiheadAttention
_ATTENTION = (
    "embed_dim",
    "kdim",
    "vdim",
    "_qkv_same_embed_dim",
    "num_heads",
    "batch_first",
    "add_zero_attn",
)


class _Siglip(LikeSiglip):
    model_type = "siglip"
    model_types = ("siglip_vision_model",)
    modeling = modeling_siglip
    forms = {SiglipVisionModel: Form(answer_tower, captures=True)}
    holders = {SiglipForImageClassification: "vision_model", SiglipModel: "vision_model"}
    layouts = (
        layout_of_siglip(
            modeling_siglip.SiglipEncoderLayer,
            modeling_siglip.SiglipAttention,
            modeling_siglip.SiglipMLP,
        ),
    )
    embeddings = modeling_siglip.SiglipVisionEmbeddings
    stack = modeling_siglip.SiglipEncoder
    pooling = modeling_siglip.SiglipMultiheadAttentionPoolingHead
    watched = {modeling_siglip.SiglipVisionEmbeddings: ("image_size", "patch_size")}
    fused = ("learned positions", "MAP head")
    unused = ("attention_mask",)

    def positions(self, embeddings: nn.Module) -> Tensor:
        return in_order(super().positions(embeddings), embeddings)


def in_order(table: Tensor, embeddings: nn.Module) -> Tensor:
    """`table` [n, D], whose rows the buffer position_ids must name in order."""
    ids = attribute(embeddings, "position_ids")
    order = torch.arange(len(table), device=ids.device)[None]
    # of the meta device, which has no values, check_tensors speaks
    if not (ids.is_meta or torch.equal(ids, order)):
        raise ValueError("position_ids are not 0, 1, 2, ...")
    return table


FAMILY = _Siglip()
