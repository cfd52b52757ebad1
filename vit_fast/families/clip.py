"""CLIP's vision encoder (Radford et al. 2021, arXiv:2103.00020): a ViT with a LayerNorm before its first layer.

Its last_hidden_state is what the last layer made, not normalized: the last LayerNorm is of the class token alone. The
engine computes that one too, as a part of the pass and of its CUDA graph, rather than the live module behind it: so a
hook on it, or another module in its place, is seen like any other inside the encoder, and transformers answers.
"""

from typing import Any

from torch import nn
from transformers import (
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip import modeling_clip
from transformers.utils import ModelOutput

from vit_fast.families.calls import Answer, Request, output_of
from vit_fast.families.family import (
    Family,
    Form,
    Sources,
    conv_sources,
    conv_spec,
    pair,
    table_sources,
)
from vit_fast.families.layout import Layout
from vit_fast.families.modules import child, parameter, parameters_of


def _answer(model: PreTrainedModel, request: Request, found: Answer) -> ModelOutput:
    return output_of(
        BaseModelOutputWithPooling,
        last_hidden_state=found.tokens,
        pooler_output=found.kept["pooled"],
        hidden_states=found.states,
        attentions=None,
    )


class _Clip(Family):
    model_type = "clip"
    model_types = ("clip_vision_model",)
    modeling = modeling_clip
    forms = {CLIPVisionModel: Form(_answer, captures=True)}
    # all of them return the encoder's tokens, or read the mean of its patches
    holders = {
        CLIPVisionModelWithProjection: "vision_model",
        CLIPModel: "vision_model",
        CLIPForImageClassification: "vision_model",
    }
    layouts = (
        Layout(
            layer=modeling_clip.CLIPEncoderLayer,
            inner={"self_attn": modeling_clip.CLIPAttention, "mlp": modeling_clip.CLIPMLP},
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
        ),
    )
    layers = "encoder.layers"
    norm = "post_layernorm"
    embeddings = modeling_clip.CLIPVisionEmbeddings
    watched = {modeling_clip.CLIPVisionEmbeddings: ("image_size", "patch_size")}
    unused = ("attention_mask",)

    def embedding_spec(self, encoder: PreTrainedModel) -> dict[str, Any]:
        embeddings, norm = encoder.embeddings, encoder.pre_layrnorm
        fields = conv_spec(embeddings.patch_embedding)
        if embeddings.patch_size != fields["patch"]:
            raise ValueError(
                f"embeddings.patch_size is {embeddings.patch_size}, of patches {fields['patch']}"
            )
        if norm.eps != encoder.post_layernorm.eps:
            raise ValueError(
                f"LayerNorms of different eps, {norm.eps} and {encoder.post_layernorm.eps}: expected one"
            )
        return fields | dict(
            image_size=pair(embeddings.image_size), pre_norm=True, norm_tokens=False
        )

    def embedding_sources(self, encoder: PreTrainedModel) -> Sources:
        embeddings = child(encoder, "embeddings", self.embeddings)
        child(encoder, "encoder", modeling_clip.CLIPEncoder)
        return {
            "cls_token": (parameter(embeddings, "class_embedding"),),
            **table_sources(embeddings, "position_embedding", "position_ids"),
            **conv_sources(embeddings, "patch_embedding"),
            **parameters_of("norm_pre", child(encoder, "pre_layrnorm", nn.LayerNorm)),
        }

    def head(self, model: PreTrainedModel, encoder: PreTrainedModel) -> tuple[dict, Sources]:
        if isinstance(model, CLIPVisionModel):
            return {}, {}
        if not isinstance(model, CLIPForImageClassification):
            head, fields = child(model, "visual_projection", nn.Linear), {}
        elif type(model.classifier) is nn.Identity:  # where num_labels is 0
            return {}, {}
        else:
            head, fields = child(model, "classifier", nn.Linear), dict(head_pool="patches")
        fields |= dict(num_labels=head.out_features, head_bias=head.bias is not None)
        return fields, parameters_of("head", head)


FAMILY = _Clip()
