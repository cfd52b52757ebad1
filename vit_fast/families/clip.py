"""CLIP's vision encoder (Radford et al. 2021, arXiv:2103.00020): the layers of SigLIP, a class token in front of them.

A LayerNorm stands before the first layer. last_hidden_state is what the last one made, not normalized: the last
LayerNorm is of the class token alone. The engine computes that one too, as a part of the pass and of its CUDA graph,
rather than the live module behind it: so a hook on it, or another module in its place, is seen like any other inside
the encoder, and transformers answers.
"""

from typing import Any

from torch import Tensor, nn
from transformers import (
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
)
from transformers.models.clip import modeling_clip

from vit_fast.families.family import Form, Sources
from vit_fast.families.modules import child, parameter, parameters_of
from vit_fast.families.siglip import LikeSiglip, answer_tower, in_order, layout_of_siglip


class _Clip(LikeSiglip):
    model_type = "clip"
    model_types = ("clip_vision_model",)
    modeling = modeling_clip
    forms = {CLIPVisionModel: Form(answer_tower, captures=True)}
    # all of them return the encoder's tokens, or read the mean of its patches
    holders = {
        CLIPVisionModelWithProjection: "vision_model",
        CLIPModel: "vision_model",
        CLIPForImageClassification: "vision_model",
    }
    layouts = (
        layout_of_siglip(
            modeling_clip.CLIPEncoderLayer, modeling_clip.CLIPAttention, modeling_clip.CLIPMLP
        ),
    )
    embeddings = modeling_clip.CLIPVisionEmbeddings
    stack = modeling_clip.CLIPEncoder
    watched = {modeling_clip.CLIPVisionEmbeddings: ("image_size", "patch_size")}
    fused = ("class token", "learned positions", "a LayerNorm before the layers")
    unused = ("attention_mask",)

    def embedding_spec(self, encoder: PreTrainedModel) -> dict[str, Any]:
        norm, last = encoder.pre_layrnorm, encoder.post_layernorm
        if norm.eps != last.eps:
            raise ValueError(
                f"LayerNorms of different eps, {norm.eps} and {last.eps}: expected one"
            )
        return super().embedding_spec(encoder) | dict(
            class_token=True, position_prefix=1, pool="token", pre_norm=True, norm_tokens=False
        )

    def embedding_sources(self, encoder: PreTrainedModel) -> Sources:
        found = super().embedding_sources(encoder)
        found["cls_token"] = (parameter(encoder.embeddings, "class_embedding"),)
        return found | parameters_of("norm_pre", child(encoder, "pre_layrnorm", nn.LayerNorm))

    def positions(self, embeddings: nn.Module) -> Tensor:
        return in_order(super().positions(embeddings), embeddings)

    def head(self, model: PreTrainedModel, encoder: PreTrainedModel) -> tuple[dict, Sources]:
        if isinstance(model, (CLIPVisionModelWithProjection, CLIPModel)):
            head = child(model, "visual_projection", nn.Linear)
            fields = dict(num_labels=head.out_features, head_bias=head.bias is not None)
            return fields, parameters_of("head", head)
        return super().head(model, encoder)


FAMILY = _Clip()
