"""Family: what the encoders of transformers have in common: how live modules are read, which calls are understood.

A family is an object of a class derived from this one, in a file of its own, that says where things are and what is
different. A Form says of one class of transformers what its forward makes of the encoder's tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from vit_fast.families.calls import Answer, Defaults, Request, states_wanted
from vit_fast.families.layout import Layout, find, layer_sources, layers_spec
from vit_fast.families.modules import attribute, child, parameters_of, remember
from vit_fast.spec import ViTSpec

Sources = dict[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Form:
    """A class of transformers whose forward the engine answers.

    answer(model, request, found) -> its output, from the live modules that `called` names.
    """

    answer: Callable[[PreTrainedModel, Request, Answer], ModelOutput]
    encoder: str = ""  # the attribute that is the encoder; "": the model itself
    rows: int | None = None  # how many tokens the answer needs of the last block, None for all
    called: tuple[str, ...] = ()  # children that `answer` calls, with all that hangs on them
    captures: bool = (
        False  # its forward is decorated with capture_outputs: return_dict=None is as True
    )


class Family(ABC):
    """One family. Its attributes are paths from the encoder."""

    model_type: str
    model_types: tuple[str, ...] = ()  # of its classes' configs, where there are others beside it
    modeling: ModuleType
    forms: Mapping[type, Form]  # the bare encoder first
    holders: Mapping[type, str] = {}  # class with an encoder at this attribute, accelerated there
    layouts: tuple[Layout, ...]
    layers = "layers"
    norm = "layernorm"
    embeddings: type[nn.Module]
    watched: Mapping[type, tuple[str, ...]] = {}
    # for `vit-fast models`: what the engine has of it beside attention and MLP, and what only transformers computes,
    # beside the arguments in `unused`
    fused: tuple[str, ...] = ("class token", "learned positions")
    falls_back: tuple[str, ...] = ()
    # arguments that must be None, and whether interpolate_pos_encoding is one, without which sizes are fixed
    unused: tuple[str, ...] = ("bool_masked_pos", "attention_mask")
    resizes_on_request = True

    def __init__(self) -> None:
        classes = [c for c in vars(self.modeling).values() if isinstance(c, type)]
        ours = (*self.forms, *self.holders, *LEAVES, nn.Linear, nn.Identity)
        remember(*(c for c in classes if issubclass(c, nn.Module)), *ours)
        self._interpolate = getattr(self.embeddings, "interpolate_pos_encoding", None)
        self.watched = {**LEAVES, **self.watched}
        for layout in self.layouts:
            self.watched |= layout.watched()
        self.watched |= {cls: ("config",) for cls in self.forms}

    # reading live modules

    def form_of(self, model: PreTrainedModel) -> Form | None:
        return next((form for cls, form in self.forms.items() if isinstance(model, cls)), None)

    def encoder_of(self, model: PreTrainedModel) -> PreTrainedModel:
        form = self.form_of(model)
        path = form.encoder if form else self.holders[type(model)]
        return child(model, path, next(iter(self.forms))) if path else model

    def layout_of(self, encoder: PreTrainedModel) -> Layout:
        layers = attribute_at(encoder, self.layers)
        if not len(layers):
            raise ValueError("the encoder has no layers")
        fitting = (layout for layout in self.layouts if layout.fits(layers[0]))
        return next(fitting, self.layouts[0])

    def activation(self, encoder: PreTrainedModel) -> str:
        """transformers' name of it."""
        return encoder.config.hidden_act

    def encoder_spec(self, encoder: PreTrainedModel) -> ViTSpec:
        """What the live modules say; without pooler and head. ValueError names what this runtime does not compute."""
        layout = self.layout_of(encoder)
        act = self.activation(encoder) if layout.activation else "silu"
        fields = layers_spec(find(encoder, self.layers), layout, act)
        norm = find(encoder, self.norm)
        if norm.eps != fields["eps"]:
            raise ValueError(
                f"LayerNorms of different eps, {fields['eps']} and {norm.eps}: expected one"
            )
        return ViTSpec(family=self.model_type, **{**fields, **self.embedding_spec(encoder)})

    def encoder_sources(self, encoder: PreTrainedModel) -> Sources:
        """timm's name -> the live parameters that make it up, concatenated on axis 0; without pooler and head.

        ValueError where a module is not exactly the stock class: `.weight` of a LoRA wrapper would leave the adapter
        out.
        """
        layout = self.layout_of(encoder)
        found = self.embedding_sources(encoder)
        act = self.activation(encoder) if layout.activation else ""
        for i, layer in enumerate(attribute_at(encoder, self.layers)):
            parts = layer_sources(f"{self.layers}.{i}", layer, layout, act)
            found |= {f"blocks.{i}.{name}": parameters for name, parameters in parts.items()}
        return found | parameters_of("norm", child(encoder, self.norm, nn.LayerNorm))

    @abstractmethod
    def embedding_spec(self, encoder: PreTrainedModel) -> dict[str, Any]:
        """The fields of a ViTSpec that are not those of the layers."""

    @abstractmethod
    def embedding_sources(self, encoder: PreTrainedModel) -> Sources:
        """Of what comes before the layers, and of what is not the same in all families."""

    def head(self, model: PreTrainedModel, encoder: PreTrainedModel) -> tuple[dict, Sources]:
        """Of a model around the encoder, or of its pooler, for ViT: more fields of a ViTSpec, and sources."""
        return {}, {}

    def bind(self, model: PreTrainedModel) -> tuple[ViTSpec, Sources]:
        """All of the model that a ViT computes."""
        encoder = self.encoder_of(model)
        sources = self.encoder_sources(encoder)
        fields, more = self.head(model, encoder)
        return replace(self.encoder_spec(encoder), **fields), sources | more

    # answering calls

    def configs(self, model: PreTrainedModel) -> list[PreTrainedConfig]:
        """All that transformers' own forward reads, the encoder's first; mostly they are one and the same object."""
        encoder = self.encoder_of(model)
        path = self.layout_of(encoder).attention
        layers = find(encoder, self.layers)
        found = [encoder.config, model.config, *(find(layer, path).config for layer in layers)]
        return list({id(config): config for config in found}.values())

    def encoder_parts(self, model: PreTrainedModel) -> list[nn.Module]:
        """The modules inside `model` that a fast call never calls."""
        form = self.form_of(model)
        if form.encoder:
            return [attribute(model, form.encoder)]
        return [child for name, child in model.named_children() if name not in form.called]

    def resizes_positions(self, encoder: PreTrainedModel, spec: ViTSpec) -> bool:
        """Whether interpolate_pos_encoding works, and is transformers' own."""
        embeddings = encoder.embeddings
        return (
            spec.image_size[0] == spec.image_size[1]
            and type(embeddings.patch_size) is int
            and "interpolate_pos_encoding" not in vars(embeddings)
            and type(embeddings).interpolate_pos_encoding is self._interpolate
        )

    def request(
        self,
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
        # given by Trainer; of the model only the loss reads it
        items = take("num_items_in_batch", None)
        loss = {} if items is None or labels is None else {"num_items_in_batch": items}
        resize = self.resizes_on_request and take("interpolate_pos_encoding", None)
        attentions = take("output_attentions", defaults.attentions)
        asked = take("output_hidden_states", defaults.hidden_states)
        as_dict = take("return_dict", True)
        for name, value in arguments.items():
            if value is not None or name not in self.unused:
                return f"{name} is given"
        if attentions:
            return "output_attentions is asked for"
        if type(pixels) not in (Tensor, nn.Parameter) or pixels.layout != torch.strided:
            return "pixel_values are not a plain tensor"
        if why := self.refused_pixels(model, spec, device, pixels, bool(resize)):
            return why
        form, states = self.form_of(model), ()
        if asked:
            states = states_wanted(self.encoder_of(model), asked, spec.depth)
        if type(states) is str:
            return states
        as_tuple = as_dict is False if form.captures else as_dict is not None and not as_dict
        return Request(pixels, states, bool(asked), as_tuple, labels, loss)

    def given(self, model: PreTrainedModel, pixels: Tensor) -> dict[str, Tensor]:
        """The arguments of a call for images [B, C, H, W]."""
        return {"pixel_values": pixels}

    def refused_pixels(
        self,
        model: PreTrainedModel,
        spec: ViTSpec,
        device: torch.device,
        pixels: Tensor,
        resize: bool,
    ) -> str:
        """Why these pixels are for transformers, or ""."""
        if pixels.dim() != 4:
            return f"pixel_values {tuple(pixels.shape)} are not [B, C, H, W]"
        batch, channels, height, width = pixels.shape
        if not batch or channels != spec.channels or pixels.device != device:
            return f"pixel_values {tuple(pixels.shape)} on {pixels.device} do not fit the model"
        return self.refused_size(model, spec, height, width, resize)

    def refused_size(
        self, model: PreTrainedModel, spec: ViTSpec, height: int, width: int, resize: bool
    ) -> str:
        """Why images of this size are for transformers, or ""."""
        native = spec.image_size
        if not self.resizes_on_request:
            if min(height, width) < spec.patch:
                return f"pixel_values of {height} x {width} hold no patch of {spec.patch}"
            if spec.positions and native[0] != native[1]:
                return (
                    f"the position table is of {native[0]} x {native[1]} pixels: expected a square"
                )
            return ""
        if resize and not self.resizes_positions(self.encoder_of(model), spec):
            return "interpolate_pos_encoding of positions that are not square, or by a method of your own"
        if (height, width) != native and not (resize and min(height, width) >= spec.patch):
            return f"pixel_values of {height} x {width} for a model of {native[0]} x {native[1]}"
        return ""


# plain attributes of PyTorch's own modules that change what a forward pass computes
LEAVES: dict[type, tuple[str, ...]] = {
    nn.Conv2d: ("stride", "padding", "dilation", "groups"),
    nn.Dropout: ("p", "training"),
    nn.LayerNorm: ("eps",),
}


def attribute_at(module: nn.Module, path: str) -> nn.Module:
    for name in path.split("."):
        module = attribute(module, name)
    return module


def conv_spec(conv: nn.Conv2d) -> dict[str, Any]:
    """patch, channels and patch_bias of a patch embedding."""
    if conv.kernel_size[0] != conv.kernel_size[1]:
        raise ValueError(f"patch_size {conv.kernel_size}: only square patches are supported")
    return dict(
        patch=conv.kernel_size[0], channels=conv.in_channels, patch_bias=conv.bias is not None
    )


def conv_sources(owner: nn.Module, name: str) -> Sources:
    """The convolution `name` of `owner`, whose patches must lie side by side."""
    conv = child(owner, name, nn.Conv2d)
    form = conv.stride, conv.padding, conv.dilation, conv.groups
    if form not in (
        (conv.kernel_size, (0, 0), (1, 1), 1),
        (conv.kernel_size, "valid", (1, 1), 1),
    ):
        raise ValueError(
            f"{type(owner).__name__}.{name} has stride, padding, dilation, groups {form}: "
            "expected patches side by side"
        )
    return parameters_of("patch_embed.proj", conv)


def pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
