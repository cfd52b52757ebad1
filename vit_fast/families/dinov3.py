"""DINOv3 (Simeoni et al. 2025, arXiv:2508.10104): class token, registers, and rotary positions of the patches.

There is no table: any size is a native one. Each bias has a flag of its own; mostly k has none. The frequencies of the
positions are a live buffer of the model, which .half() casts as well.
"""

from typing import Any

from torch import nn
from transformers import DINOv3ViTBackbone, DINOv3ViTModel, PreTrainedModel
from transformers.models.dinov3_vit import modeling_dinov3_vit as modeling
from transformers.utils import ModelOutput

from vit_fast.families.backbone import MODEL, Shown, WithBackbone, as_map, states_shown
from vit_fast.families.calls import Answer, Request, output_of
from vit_fast.families.family import Form, Sources, conv_sources, conv_spec, pair
from vit_fast.families.layout import Layout
from vit_fast.families.modules import attribute, child
from vit_fast.spec import ViTSpec

_LAYER = dict(
    layer=modeling.DINOv3ViTLayer,
    attention="attention",
    norm1="norm1",
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    proj="attention.o_proj",
    norm2="norm2",
    fc2="mlp.down_proj",
    activation="mlp.act_fn",
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    attributes=("config", "is_causal", "dropout", "training", "num_heads"),
)
_INNER = {
    "attention": modeling.DINOv3ViTAttention,
    "drop_path": (nn.Identity, modeling.Dinov3ViTDropPath),
    "layer_scale1": modeling.DINOv3ViTLayerScale,
    "layer_scale2": modeling.DINOv3ViTLayerScale,
}
_GATED = {**_INNER, "mlp": modeling.DINOv3ViTGatedMLP}
_PLAIN = {**_INNER, "mlp": modeling.DINOv3ViTMLP}
_RANDOM = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")


def _answer_backbone(model: PreTrainedModel, request: Request, found: Answer) -> ModelOutput:
    """The last stage is normalized whatever the config says, and is last_hidden_state where states are shown."""
    config, last = model.config, len(model.stage_names) - 1
    with_token = getattr(config, "return_class_token", False)
    maps, tokens, whole = [], [], None
    for i in request.states:
        x, shown_only = found.kept[i], i not in request.stages
        if shown_only and i != last:
            continue
        if i == last or config.apply_layernorm:
            x = model.norm(x)
        if i == last:
            whole = x
        if shown_only:
            continue
        if with_token:
            tokens.append(x[:, 0, :])
        x = x[:, 1 + getattr(config, "num_register_tokens", 0) :, :]
        maps.append(as_map(x, request.pixels, config) if config.reshape_hidden_states else x)
    output = output_of(
        modeling.DINOv3ViTBackboneOutput,
        feature_maps=tuple(maps),
        hidden_states=states_shown(request, found),
        attentions=None,
        cls_tokens=tuple(tokens) if with_token else None,
    )
    # transformers makes the output anew, without what is no field, where it takes the hidden states out
    if request.shown is not None:
        output.last_hidden_state = whole
    return output


class _DINOv3(WithBackbone):
    model_type = "dinov3_vit"
    modeling = modeling
    forms = {
        DINOv3ViTModel: MODEL,
        DINOv3ViTBackbone: Form(_answer_backbone, rows=0, called=("norm",)),
    }
    layouts = (
        Layout(inner=_GATED, fc1=("mlp.gate_proj", "mlp.up_proj"), gated=True, **_LAYER),
        Layout(inner=_PLAIN, fc1=("mlp.up_proj",), **_LAYER),
    )
    fused = ("class token", "registers", "RoPE", "LayerScale", "gated MLP")
    falls_back = ("positions drawn at random in training mode",)
    layers = "model.layer"
    norm = "norm"
    embeddings = modeling.DINOv3ViTEmbeddings
    runner = modeling.DINOv3ViTEncoder
    watched = {
        modeling.Dinov3ViTDropPath: ("drop_prob", "training"),
        modeling.DINOv3ViTRopePositionEmbedding: ("config",),
    }

    def embedding_spec(self, encoder: PreTrainedModel) -> dict[str, Any]:
        return conv_spec(encoder.embeddings.patch_embeddings) | dict(
            image_size=pair(encoder.config.image_size),
            registers=self.registers(encoder),
            positions=False,
            position_prefix=0,
            rope_theta=encoder.rope_embeddings.base,
        )

    def embedding_sources(self, encoder: PreTrainedModel) -> Sources:
        found = self.prefix_sources(encoder) | conv_sources(encoder.embeddings, "patch_embeddings")
        rope = child(encoder, "rope_embeddings", modeling.DINOv3ViTRopePositionEmbedding)
        if rope.config is not encoder.config:
            raise ValueError("rope_embeddings has a config of its own")
        freqs = attribute(rope, "inv_freq")
        device = found["patch_embed.proj.weight"][0].device
        if freqs is not rope._buffers.get("inv_freq") or freqs.device != device:
            raise ValueError(f"rope_embeddings.inv_freq is not a buffer on {device}")
        return found | {"rope_freqs": (freqs,)}

    def refused_config(self, model: PreTrainedModel, spec: ViTSpec) -> str:
        if model.rope_embeddings.training:
            for name in _RANDOM:
                if getattr(model.config, name) is not None:
                    return f"positions are drawn at random in training mode, config.{name}"
        return super().refused_config(model, spec)

    def read_beside(self, model: PreTrainedModel, shown: Shown) -> tuple[int, ...]:
        # of which last_hidden_state is made
        return () if shown is None else (len(model.stage_names) - 1,)


FAMILY = _DINOv3()
