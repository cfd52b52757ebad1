"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193), without and with registers (Darcet et al. 2023, arXiv:2309.16588).

LayerScale, an MLP or SwiGLU, and a learned table that is resized to every image, in fp32. Registers are put in behind
the class token after positions were added. Its releases in transformers name the parts of a layer differently.
"""

from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import (
    Dinov2Backbone,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    PreTrainedModel,
)
from transformers.models.dinov2 import modeling_dinov2
from transformers.models.dinov2_with_registers import modeling_dinov2_with_registers

from vit_fast.families.backbone import BACKBONE, MODEL, WithBackbone, check_patch_size
from vit_fast.families.family import Sources, conv_sources, conv_spec
from vit_fast.families.layout import Layout
from vit_fast.families.modules import child, parameter, parameters_of
from vit_fast.spec import ViTSpec


def _layouts(modeling: ModuleType, prefix: str) -> tuple[Layout, ...]:
    """With an MLP and with SwiGLU."""

    def cls(name: str) -> type:
        return getattr(modeling, prefix + name)

    inner = {"attention": cls("Attention"), "drop_path": (nn.Identity, cls("DropPath"))}
    inner |= {name: cls("LayerScale") for name in ("layer_scale1", "layer_scale2")}
    both = dict(
        layer=cls("Layer"),
        norm1="norm1",
        norm2="norm2",
        scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    )
    if hasattr(modeling, f"{prefix}SelfAttention"):  # before transformers 5.19
        inner |= {
            "attention.attention": cls("SelfAttention"),
            "attention.output": cls("SelfOutput"),
            "attention.output.dropout": nn.Dropout,
        }
        names = ("query", "key", "value")
        both |= dict(
            attention="attention.attention",
            qkv=tuple(f"attention.attention.{name}" for name in names),
            proj="attention.output.dense",
            head_dim="attention_head_size",
            attributes=("config", "is_causal", "dropout_prob", "training", "num_attention_heads"),
        )
        activation, swiglu = "mlp.activation", dict(fc1=("mlp.weights_in",), fc2="mlp.weights_out")
        swiglu |= dict(activation=None)
    else:
        both |= dict(
            attention="attention",
            qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
            proj="attention.o_proj",
            attributes=("config", "is_causal", "attention_dropout", "training"),
        )
        activation = "mlp.activation_fn"
        swiglu = dict(fc1=("mlp.gate_proj", "mlp.up_proj"), fc2="mlp.down_proj")
        swiglu |= dict(activation="mlp.act_fn")
    return (
        Layout(
            inner={**inner, "mlp": cls("MLP")},
            fc1=("mlp.fc1",),
            fc2="mlp.fc2",
            activation=activation,
            **both,
        ),
        Layout(inner={**inner, "mlp": cls("SwiGLUFFN")}, gated=True, **swiglu, **both),
    )


class _Dinov2(WithBackbone):
    """prefix: how the names of transformers' classes begin. resize: one of spec.RESIZES."""

    prefix: str
    resize: str
    fused = ("class token", "learned positions", "LayerScale", "SwiGLU")
    falls_back = ("a table of positions that is not square",)

    def __init__(self) -> None:
        def cls(name: str) -> type:
            return getattr(self.modeling, self.prefix + name)

        self.layouts = _layouts(self.modeling, self.prefix)
        self.embeddings, self.patches = cls("Embeddings"), cls("PatchEmbeddings")
        self.runner = cls("Encoder")
        self.layers = "encoder.layer"
        self.watched = {
            self.embeddings: ("config", "patch_size"),
            self.patches: ("num_channels", "patch_size", "image_size"),
            cls("DropPath"): ("drop_prob", "training"),
        }
        super().__init__()

    def activation(self, encoder: PreTrainedModel) -> str:
        if self.layout_of(encoder).gated:
            return "silu"
        act = encoder.config.hidden_act
        if type(act) is not str:
            raise ValueError(f"config.hidden_act is a {type(act).__name__}, expected a name")
        return act

    def embedding_spec(self, encoder: PreTrainedModel) -> dict[str, Any]:
        embeddings = encoder.embeddings
        patches = embeddings.patch_embeddings
        fields = conv_spec(patches.projection)
        check_patch_size(embeddings, fields["patch"])
        check_patch_size(patches, (fields["patch"], fields["patch"]))
        return fields | dict(
            image_size=tuple(patches.image_size),
            channels=patches.num_channels,
            registers=self.registers(encoder),
            resize=self.resize,
        )

    def embedding_sources(self, encoder: PreTrainedModel) -> Sources:
        found = self.prefix_sources(encoder)
        embeddings = encoder.embeddings
        patches = child(embeddings, "patch_embeddings", self.patches)
        child(embeddings, "dropout", nn.Dropout)
        positions = parameter(embeddings, "position_embeddings")
        if positions is None:
            raise ValueError("the embeddings have no positions: expected a table")
        return found | {"pos_embed": (positions,)} | conv_sources(patches, "projection")

    def head(self, model: PreTrainedModel, encoder: PreTrainedModel) -> tuple[dict, Sources]:
        # transformers puts an Identity where num_labels is 0
        classifier = getattr(model, "classifier", None)
        if classifier is None or type(classifier) is nn.Identity:
            return {}, {}
        sources = parameters_of("head", child(model, "classifier", nn.Linear))
        # what its forward takes for patches
        if getattr(model.config, "num_register_tokens", 0) != self.registers(encoder):
            raise ValueError("config.num_register_tokens is not the number of register tokens")
        fields = dict(
            num_labels=classifier.out_features,
            head_bias=classifier.bias is not None,
            head_pool="token and patches",
        )
        return fields, sources

    def refused_size(
        self, model: PreTrainedModel, spec: ViTSpec, height: int, width: int, resize: bool
    ) -> str:
        embeddings = model.embeddings
        if (
            "interpolate_pos_encoding" in vars(embeddings)
            or type(embeddings).interpolate_pos_encoding is not self._interpolate
        ):
            return "interpolate_pos_encoding is a method of your own"
        # transformers rounds the table to fp32 where an image that is not square has the table's own patches
        native = height != width and spec.grid((height, width)) == spec.grid()
        if native and embeddings.position_embeddings.dtype == torch.float64:
            return f"the table of {height} x {width} pixels is rounded to fp32"
        return super().refused_size(model, spec, height, width, resize)


class _Plain(_Dinov2):
    model_type = "dinov2"
    modeling = modeling_dinov2
    prefix = "Dinov2"
    resize = "bicubic fp32"
    forms = {Dinov2Model: MODEL, Dinov2Backbone: BACKBONE}
    # its head needs all tokens
    holders = {Dinov2ForImageClassification: "dinov2"}


class _WithRegisters(_Dinov2):
    model_type = "dinov2_with_registers"
    modeling = modeling_dinov2_with_registers
    prefix = "Dinov2WithRegisters"
    resize = "bicubic antialias fp32"
    fused = ("registers", *_Dinov2.fused)
    forms = {Dinov2WithRegistersModel: MODEL, Dinov2WithRegistersBackbone: BACKBONE}
    holders = {Dinov2WithRegistersForImageClassification: "dinov2_with_registers"}


FAMILY = _Plain()
WITH_REGISTERS = _WithRegisters()
