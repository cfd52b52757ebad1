"""One file per family: live HF module -> ViTSpec and weights under timm's names; a call of it -> what the runtime
is asked for; the runtime's result -> HF's output class.

Weights are bound by the attributes of the live module, never by the keys of a checkpoint file: those differ between
releases of transformers, and transformers' own loader reads all of them.
"""

from collections.abc import Iterable, Mapping
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from vit_fast.families import vit
from vit_fast.families.modules import stock_class
from vit_fast.spec import ViTSpec

FAMILIES: tuple[ModuleType, ...] = (vit,)
SUPPORTED = " or ".join(cls.__name__ for family in FAMILIES for cls in family.MODELS)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def family_named(model_type: str | None) -> ModuleType | None:
    """The family of a config's `model_type`."""
    return {family.MODEL_TYPE: family for family in FAMILIES}.get(model_type)


def class_named(name: str) -> type[PreTrainedModel]:
    """The supported class of transformers with this name."""
    return next(cls for family in FAMILIES for cls in family.MODELS if cls.__name__ == name)


def family_of(model: object) -> ModuleType | None:
    """The family of a live model whose class is exactly one that is supported, or a drop-in's of it."""
    cls = stock_class(model)
    return next((family for family in FAMILIES if cls in family.MODELS), None)


def bind(model: PreTrainedModel) -> tuple[ViTSpec, dict[str, tuple[Tensor, ...]]]:
    """A live HF model -> its spec, and timm's name -> the parameters whose concatenation on axis 0 it is.

    ValueError for a model of another class (exactly: a subclass may compute something else), for a
    module inside it that is not stock, for weights on the meta device or of several dtypes or devices.
    """
    family = family_of(model)
    if family is None:
        name = type(model).__name__
        if hasattr(model, "merge_and_unload"):
            raise ValueError(f"{name} holds adapters: pass what its merge_and_unload() returns")
        raise ValueError(
            f"{name} is not a supported encoder: pass exactly one of transformers' {SUPPORTED}"
        )
    sources = family.sources(model)
    check_tensors(sources)
    return family.spec_from_model(model), sources


def bind_encoder(model: PreTrainedModel) -> tuple[ViTSpec, dict[str, tuple[Tensor, ...]]]:
    """As bind, for the encoder in a supported `model` alone: pooler and head may be anything."""
    family = family_of(model)
    encoder = family.encoder_of(model)
    sources = family.encoder_sources(encoder)
    check_tensors(sources)
    return family.encoder_spec(encoder), sources


def check_tensors(sources: Mapping[str, tuple[Tensor, ...]]) -> None:
    """ValueError for tensors of a class of their own, on the meta device, or of several dtypes or devices."""
    if special := {type(t) for v in sources.values() for t in v} - {Tensor, Parameter}:
        raise ValueError(
            f"the weights are {_listed(cls.__name__ for cls in special)}, expected plain parameters: "
            "undo the quantization or sharding first"
        )
    dtypes, devices = (
        {getattr(t, of) for v in sources.values() for t in v} for of in ("dtype", "device")
    )
    if any(device.type == "meta" for device in devices):
        raise ValueError(
            "the model is on the meta device and has no weights: load it with from_pretrained"
        )
    if any(t.device.type == "cpu" and t.is_shared() for v in sources.values() for t in v):
        raise ValueError("the weights are in shared memory, where another process may write")
    if len(devices) > 1:
        raise ValueError(f"the model is spread over {_listed(devices)}: move it to one device")
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise ValueError(
            f"the weights are {_listed(dtypes)}, expected one of {_listed(DTYPES)}: "
            "convert them, as in model.to(torch.float32)"
        )


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, values)))
