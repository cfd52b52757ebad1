"""Google's ViT (Dosovitskiy et al. 2020, arXiv:2010.11929), and what DeiT and I-JEPA share with it in transformers.

A class token, learned positions, q, k and v each a Linear of its own, erf-GELU, a final LayerNorm. ViTModel may have a
pooler, tanh(dense(class token)); the classifier takes the class token itself.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedModel, ViTForImageClassification, ViTModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.vit import modeling_vit
from transformers.utils import ModelOutput

from vit_fast.families.calls import Answer, Request, output_of
from vit_fast.families.family import Family, Form, Sources, conv_sources, conv_spec, pair
from vit_fast.families.layout import Layout, activation_named
from vit_fast.families.modules import attribute, child, parameter, parameters_of
from vit_fast.spec import POOLER_ACTIVATIONS


def layout_of_vit(layer: type, attention: type, mlp: type) -> Layout:
    """The layer of ViT, of which DeiT and I-JEPA have copies."""
    return Layout(
        layer=layer,
        inner={"attention": attention, "mlp": mlp, "dropout": nn.Dropout},
        attention="attention",
        norm1="layernorm_before",
        qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        proj="attention.o_proj",
        norm2="layernorm_after",
        fc1=("mlp.fc1",),
        fc2="mlp.fc2",
        activation="mlp.activation_fn",
        attributes=("config", "is_causal", "attention_dropout", "training"),
    )


def answer_encoder(model: PreTrainedModel, request: Request, found: Answer) -> ModelOutput:
    pooled = None if model.pooler is None else model.pooler(found.tokens)
    return output_of(
        BaseModelOutputWithPooling,
        last_hidden_state=found.tokens,
        pooler_output=pooled,
        hidden_states=found.states,
        attentions=None,
    )


def answer_classifier(model: PreTrainedModel, request: Request, found: Answer) -> ModelOutput:
    logits, loss = model.classifier(found.tokens[:, 0, :]), None
    if request.labels is not None:
        loss = model.loss_function(request.labels, logits, model.config, **request.loss)
    return output_of(
        ImageClassifierOutput,
        loss=loss,
        logits=logits,
        hidden_states=found.states,
        attentions=None,
    )


class LikeViT(Family):
    """Embeddings, pooler and classifier of ViT, DeiT and I-JEPA."""

    patches: type[nn.Module]
    pooler: type[nn.Module]
    tokens: tuple[str, ...] = ("cls_token",)  # attributes of the embeddings, in order

    def __init__(self) -> None:
        self.watched = {
            self.embeddings: ("image_size", "patch_size"),
            self.patches: ("num_channels",),
        }
        super().__init__()

    def embedding_spec(self, encoder: PreTrainedModel) -> dict[str, Any]:
        embeddings = encoder.embeddings
        conv = embeddings.patch_embeddings.projection
        fields = conv_spec(conv)
        if pair(embeddings.patch_size) != conv.kernel_size:
            raise ValueError(
                f"embeddings.patch_size is {embeddings.patch_size}, of patches {conv.kernel_size}"
            )
        return fields | dict(
            image_size=tuple(embeddings.image_size),
            channels=embeddings.patch_embeddings.num_channels,
            class_token="cls_token" in self.tokens,
            distillation_token="distillation_token" in self.tokens,
            position_prefix=len(self.tokens),
            pool="token" if self.tokens else "patches",
        )

    def embedding_sources(self, encoder: PreTrainedModel) -> Sources:
        embeddings = child(encoder, "embeddings", self.embeddings)
        patches = child(embeddings, "patch_embeddings", self.patches)
        child(embeddings, "dropout", nn.Dropout)
        ours = ("cls_token", "dist_token")
        tokens = {a: (parameter(embeddings, b),) for a, b in zip(ours, self.tokens)}
        positions = {"pos_embed": (parameter(embeddings, "position_embeddings"),)}
        return tokens | positions | conv_sources(patches, "projection")

    def head(self, model: PreTrainedModel, encoder: PreTrainedModel) -> tuple[dict, Sources]:
        fields, sources = {}, {}
        if attribute(encoder, "pooler") is not None:
            pooler = child(encoder, "pooler", self.pooler)
            child(pooler, "activation", type(ACT2FN[model.config.pooler_act]))
            sources = parameters_of("pooler", child(pooler, "dense", nn.Linear))
            act = activation_named("pooler_act", model.config.pooler_act, POOLER_ACTIVATIONS)
            fields = dict(pool="token", pooler_dim=pooler.dense.out_features, pooler_activation=act)
        # transformers puts an Identity where num_labels is 0
        classifier = getattr(model, "classifier", None)
        if classifier is not None and type(classifier) is not nn.Identity:
            sources |= parameters_of("head", child(model, "classifier", nn.Linear))
            fields["num_labels"] = classifier.out_features
        return fields, sources


class _ViT(LikeViT):
    model_type = "vit"
    modeling = modeling_vit
    forms = {
        ViTModel: Form(answer_encoder, called=("pooler",), captures=True),
        ViTForImageClassification: Form(
            answer_classifier, encoder="vit", rows=1, called=("classifier",)
        ),
    }
    layouts = (
        layout_of_vit(modeling_vit.ViTLayer, modeling_vit.ViTAttention, modeling_vit.ViTMLP),
    )
    embeddings = modeling_vit.ViTEmbeddings
    patches = modeling_vit.ViTPatchEmbeddings
    pooler = modeling_vit.ViTPooler


FAMILY = _ViT()
