"""One file per family: HF config -> ViTSpec, live HF module -> weights under timm's names.

Weights are bound by the attributes of the live module, never by the keys of a checkpoint file: those differ between
releases of transformers, and transformers' own loader reads all of them.
"""

from collections.abc import Iterable
from types import ModuleType

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vit_fast.families import vit
from vit_fast.spec import ViTSpec

FAMILIES: tuple[ModuleType, ...] = (vit,)
SUPPORTED = " or ".join(cls.__name__ for family in FAMILIES for cls in family.MODELS)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def family_named(model_type: str | None) -> ModuleType | None:
    """The family of a config's `model_type`."""
    return {family.MODEL_TYPE: family for family in FAMILIES}.get(model_type)


def bind(model: PreTrainedModel) -> tuple[ViTSpec, dict[str, tuple[Tensor, ...]]]:
    """A live HF model -> its spec, and timm's name -> the parameters whose concatenation on axis 0 it is.

    ValueError for a model of another class (exactly: a subclass may compute something else), for a
    module inside it that is not stock, for weights on the meta device or of several dtypes or devices.
    """
    family = next((family for family in FAMILIES if type(model) in family.MODELS), None)
    if family is None:
        name = type(model).__name__
        if hasattr(model, "merge_and_unload"):
            raise ValueError(f"{name} holds adapters: pass what its merge_and_unload() returns")
        raise ValueError(
            f"{name} is not a supported encoder: pass exactly one of transformers' {SUPPORTED}"
        )
    sources = family.sources(model)
    dtypes, devices = (
        {getattr(t, of) for v in sources.values() for t in v} for of in ("dtype", "device")
    )
    if any(device.type == "meta" for device in devices):
        raise ValueError(
            "the model is on the meta device and has no weights: load it with from_pretrained"
        )
    if len(devices) > 1:
        raise ValueError(f"the model is spread over {_listed(devices)}: move it to one device")
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise ValueError(
            f"the weights are {_listed(dtypes)}, expected one of {_listed(DTYPES)}: "
            "convert them, as in model.to(torch.float32)"
        )
    return family.spec_from_model(model), sources


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, values)))
