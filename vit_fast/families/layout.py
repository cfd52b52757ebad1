"""Layout: where a layer of transformers keeps the parts of a block.

Everything is an attribute path from the layer, `attention.q_proj` say. Each module on the way must be exactly of the
class that the layout names: anything else may compute something that the weights do not say.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from vit_fast.families.modules import attribute, child, exactly, parameter, parameters_of
from vit_fast.spec import ACTIVATIONS

# transformers' name -> ours, where they differ
_ACTIVATION_NAMES = {
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "swish": "silu",
}


@dataclass(frozen=True)
class Layout:
    """One kind of layer. Linear layers are given as tuples of paths: those whose outputs lie side by side in ours."""

    layer: type[nn.Module]
    inner: Mapping[str, type | tuple[type, ...]]  # the other modules of the layer, by path
    attention: str  # the module that has head_dim and scale among its attributes
    norm1: str
    qkv: tuple[str, ...]
    proj: str
    norm2: str
    fc1: tuple[str, ...]  # (gate, up) where the layer is gated, or one that holds both
    fc2: str
    activation: str | None  # path of its module; None: a function, silu
    gated: bool = False
    scales: tuple[str, ...] = ()  # LayerScale's parameters, behind proj and behind fc2
    head_dim: str = "head_dim"
    scale: str = "scaling"
    attributes: tuple[str, ...] = field(default=("config", "is_causal", "training"))

    def watched(self) -> dict[type, tuple[str, ...]]:
        """The attributes of its modules that change what a forward pass computes."""
        cls = self.inner[self.attention]
        return {cls: (*self.attributes, self.head_dim, self.scale)}

    def fits(self, layer: nn.Module) -> bool:
        """Whether `layer` may be one of these, so that what does not fit is an error."""
        return all(find(layer, path) is not None for path in (*self.fc1, self.fc2))


def find(module: nn.Module, path: str) -> nn.Module | Tensor | None:
    """What is at `path`, None if nothing is."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def at(module: nn.Module, path: str, expected: type | tuple[type, ...]) -> nn.Module:
    """The module at `path`, exactly of the class `expected`, or of one of several."""
    *way, last = path.split(".")
    for name in way:
        module = attribute(module, name)
    return child(module, last, expected)


def parameter_at(module: nn.Module, path: str) -> Tensor | None:
    *way, last = path.split(".")
    for name in way:
        module = attribute(module, name)
    return parameter(module, last)


def layer_sources(
    name: str, layer: nn.Module, layout: Layout, act: str
) -> dict[str, tuple[Tensor, ...]]:
    """timm's name of each part of the block `name` -> the live parameters that make it up.

    act: transformers' name of the activation. ValueError where a module is not what it should be.
    """
    exactly(layer, name, layout.layer)
    for path, expected in layout.inner.items():
        at(layer, path, expected)
    attention = find(layer, layout.attention)
    head_dim, scale = (getattr(attention, field) for field in (layout.head_dim, layout.scale))
    if scale != head_dim**-0.5 or getattr(attention, "is_causal", False):
        raise ValueError(
            f"{name}.{layout.attention} has {layout.scale} {scale} and is_causal {attention.is_causal}, "
            "expected 1 / sqrt(head_dim) and False"
        )
    if layout.activation is not None:
        at(layer, layout.activation, type(ACT2FN[act]))
    linears = {
        "attn.qkv": layout.qkv,
        "attn.proj": (layout.proj,),
        "mlp.fc1": layout.fc1,
        "mlp.fc2": (layout.fc2,),
    }
    found = {}
    for part, path in (("norm1", layout.norm1), ("norm2", layout.norm2)):
        found |= parameters_of(part, at(layer, path, nn.LayerNorm))
    for part, paths in linears.items():
        found |= parameters_of(part, *(at(layer, path, nn.Linear) for path in paths))
    for part, path in zip(("ls1", "ls2"), layout.scales):
        found[f"{part}.gamma"] = (parameter_at(layer, path),)
    return found


def layers_spec(layers: nn.ModuleList, layout: Layout, act: str) -> dict[str, Any]:
    """The fields of a ViTSpec that its layers say, rather than the config: a user may have changed one."""
    found = [_layer_spec(layer, layout) for layer in layers]
    for name in found[0]:
        values = {fields[name] for fields in found}
        if len(values) != 1:
            raise ValueError(f"the layers differ in {name}, {sorted(values)}: expected one")
    return found[0] | dict(
        depth=len(layers),
        activation=activation_named("hidden_act", act, ACTIVATIONS),
        gated=layout.gated,
        layer_scale=bool(layout.scales),
    )


def _layer_spec(layer: nn.Module, layout: Layout) -> dict[str, Any]:
    paths = (layout.qkv[0], layout.proj, layout.fc2, layout.norm1, layout.norm2)
    q, proj, fc2, *norms = (find(layer, path) for path in paths)
    head_dim = getattr(find(layer, layout.attention), layout.head_dim)
    if norms[0].eps != norms[1].eps:
        raise ValueError(f"LayerNorms of different eps, {norms[0].eps} and {norms[1].eps}")
    return dict(
        dim=proj.out_features,
        heads=q.out_features // head_dim,
        head_dim=head_dim,
        mlp_dim=fc2.in_features,
        eps=norms[0].eps,
        qkv_bias=any(find(layer, path).bias is not None for path in layout.qkv),
        proj_bias=proj.bias is not None,
        mlp_bias=fc2.bias is not None,
    )


def activation_named(field: str, name: str, known: tuple[str, ...]) -> str:
    """Our name of transformers' activation `name`, which the config has under `field`."""
    ours = _ACTIVATION_NAMES.get(name, name)
    if ours not in known:
        raise ValueError(f"{field} {name!r} is not supported, only {', '.join(known)}")
    return ours
