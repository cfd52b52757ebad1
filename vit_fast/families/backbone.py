"""What DINOv2 and DINOv3 share: an encoder that runs its layers, sizes of any kind, and backbones.

A backbone returns hidden states as feature maps. Which ones, and what is made of them, is read from the live model at
each call; no block behind the last of them is computed. The norm is the model's own module, called on each map.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.utils import ModelOutput, output_capturing

from vit_fast.families.calls import Answer, Defaults, Request, output_of
from vit_fast.families.family import Family, Form, Sources
from vit_fast.families.modules import attribute, child, parameter
from vit_fast.spec import ViTSpec

Shown = tuple[int, ...] | list[int | None] | None


def answer_model(model: PreTrainedModel, request: Request, found: Answer) -> ModelOutput:
    return output_of(
        BaseModelOutputWithPooling,
        last_hidden_state=found.tokens,
        pooler_output=found.tokens[:, 0, :],
        hidden_states=found.states,
        attentions=None,
    )


MODEL = Form(answer_model)


def answer_backbone(model: PreTrainedModel, request: Request, found: Answer) -> ModelOutput:
    """Of DINOv2: a map that keeps its shape keeps its prefix tokens too."""
    config, maps = model.config, []
    for i in request.stages:
        x = found.kept[i]
        if config.apply_layernorm:
            x = model.layernorm(x)
        if config.reshape_hidden_states:
            x = as_map(
                x[:, 1 + getattr(config, "num_register_tokens", 0) :], request.pixels, config
            )
        maps.append(x)
    return output_of(
        BackboneOutput,
        feature_maps=tuple(maps),
        hidden_states=states_shown(request, found),
        attentions=None,
    )


BACKBONE = Form(answer_backbone, rows=0, called=("layernorm",))


def as_map(patches: Tensor, pixels: Tensor, config: Any) -> Tensor:
    """[B, P, D] -> [B, D, H / patch, W / patch], contiguous"""
    height, width = (n // config.patch_size for n in pixels.shape[-2:])
    x = patches.reshape(len(patches), height, width, patches.shape[-1])
    return x.permute(0, 3, 1, 2).contiguous()


def states_shown(request: Request, found: Answer) -> tuple | list | None:
    if request.shown is None:
        return None
    return type(request.shown)(None if i is None else found.kept[i] for i in request.shown)


class WithBackbone(Family):
    """A family whose every form is an encoder itself, some of them backbones."""

    runner: type[nn.Module]  # the class of the module that the layers are in
    resizes_on_request = False

    def __init__(self) -> None:
        self.watched = {self.runner: ("config",), self.embeddings: ("config",), **self.watched}
        super().__init__()

    def prefix_sources(self, encoder: PreTrainedModel) -> Sources:
        """Of the tokens before the patches; what holds them and the layers must be stock, with the model's config."""
        embeddings = child(encoder, "embeddings", self.embeddings)
        runner = child(encoder, self.layers.partition(".")[0], self.runner)
        for module in (embeddings, runner):
            if module.config is not encoder.config:
                raise ValueError(f"{type(module).__name__} has a config of its own")
        found = {"cls_token": (parameter(embeddings, "cls_token"),)}
        if self.registers(encoder):
            found["reg_token"] = (parameter(embeddings, "register_tokens"),)
        return found

    def registers(self, encoder: PreTrainedModel) -> int:
        tokens = getattr(encoder.embeddings, "register_tokens", None)
        return 0 if tokens is None else tokens.shape[1]

    def refused_config(self, model: PreTrainedModel, spec: ViTSpec) -> str:
        """Why what transformers reads from the config at each call does not fit the weights, or ""."""
        # not by getattr, which takes microseconds of a module and of a config to say that there is none
        config = vars(model.config)
        patch = config.get("patch_size")
        if type(patch) is not int or patch != spec.patch:
            return f"config.patch_size is {patch}, of patches {spec.patch}"
        for owner in (config, vars(model)):
            found = owner.get("num_register_tokens", spec.registers)
            if found != spec.registers:
                return f"num_register_tokens is {found}, of {spec.registers} tokens"
        return ""

    def request(
        self,
        spec: ViTSpec,
        device: torch.device,
        model: PreTrainedModel,
        arguments: dict[str, Any],
        defaults: Defaults,
    ) -> Request | str:
        if why := self.refused_config(model, spec):
            return why
        if not isinstance(model, BackboneMixin):
            return super().request(spec, device, model, arguments, defaults)
        asked = arguments.pop("output_hidden_states", defaults.hidden_states)
        arguments["output_hidden_states"] = False
        request = super().request(spec, device, model, arguments, defaults)
        if type(request) is str:
            return request
        shown = shown_states(model, asked, spec.depth)
        names = model.stage_names[: spec.depth + 1]
        stages = tuple(i for i, name in enumerate(names) if name in model.out_features)
        if not stages:  # transformers' output is then without a field
            return f"no stage is among out_features, {model.out_features}"
        read = {*stages, *(shown or ()), *self.read_beside(model, shown)}
        states = tuple(i for i in range(spec.depth + 1) if i in read)
        return request._replace(states=states, stages=stages, shown=shown)

    def read_beside(self, model: PreTrainedModel, shown: Shown) -> tuple[int, ...]:
        """Hidden states that a backbone's answer reads beside its stages and those it shows."""
        return ()


def shown_states(model: PreTrainedModel, asked: Any, depth: int) -> Shown:
    """`output_hidden_states` of a backbone -> the indices of what it returns, as its filter_output_hidden_states does.

    In a list where there is a selection, as there.
    """
    if not asked:
        return None
    if asked is True:
        return tuple(range(depth + 1))
    if hasattr(output_capturing, "resolve_hidden_states_indices"):
        selected = output_capturing.selected_hidden_states(asked)
        found = output_capturing.resolve_hidden_states_indices(
            model, selected, num_hidden_states=depth + 1
        )
        return [i if i in found else None for i in range(depth + 1)]
    # earlier releases count blocks, not states, and take any number for True
    if isinstance(asked, (list, tuple, set)):
        return [i + 1 if i in asked else None for i in range(depth)]
    return tuple(range(depth + 1))


def check_patch_size(module: nn.Module, expected: int | tuple[int, int]) -> None:
    """ValueError where the size that its forward computes with is not that of the convolution."""
    found = attribute(module, "patch_size")
    found = tuple(found) if isinstance(found, (list, tuple)) else found
    if found != expected:
        raise ValueError(f"{type(module).__name__}.patch_size is {found}, of patches {expected}")
