"""One file per family: live HF module -> ViTSpec and weights under timm's names; a call of it -> what the runtime
is asked for; the runtime's result -> HF's output class.

Weights are bound by the attributes of the live module, never by the keys of a checkpoint file: those differ between
releases of transformers, and transformers' own loader reads all of them.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from vit_fast.families import clip, deit, dinov2, dinov3, idefics, ijepa, siglip, siglip2, vit
from vit_fast.families.family import Family
from vit_fast.families.modules import stock_class
from vit_fast.spec import ViTSpec

FAMILIES: tuple[Family, ...] = (
    vit.FAMILY,
    deit.FAMILY,
    ijepa.FAMILY,
    dinov2.FAMILY,
    dinov2.WITH_REGISTERS,
    dinov3.FAMILY,
    clip.FAMILY,
    siglip.FAMILY,
    siglip2.FAMILY,
    idefics.IDEFICS2,
    idefics.IDEFICS3,
    idefics.SMOLVLM,
)
SUPPORTED = (
    f"an encoder of {', '.join(family.model_type for family in FAMILIES)}; "
    "`vit-fast models` lists their classes"
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def family_named(model_type: str | None) -> Family | None:
    """The family of a config's `model_type`."""
    named = {name: f for f in FAMILIES for name in (f.model_type, *f.model_types)}
    return named.get(model_type)


def classes() -> dict[str, type[PreTrainedModel]]:
    """By name, the classes of transformers that are accelerated, or hold one that is."""
    return {cls.__name__: cls for family in FAMILIES for cls in (*family.forms, *family.holders)}


def family_of(model: object, holders: bool = False) -> Family | None:
    """The family of a live model whose class is exactly one that is supported, or a drop-in's of it.

    holders: also of one that only holds such a model.
    """
    cls = stock_class(model)
    for family in FAMILIES:
        if cls in family.forms or (holders and cls in family.holders):
            return family
    return None


def bind(model: PreTrainedModel) -> tuple[ViTSpec, dict[str, tuple[Tensor, ...]]]:
    """A live HF model -> its spec, and timm's name -> the parameters whose concatenation on axis 0 it is.

    ValueError for a model of another class (exactly: a subclass may compute something else), for a
    module inside it that is not stock, for weights on the meta device or of several dtypes or devices.
    """
    family = family_of(model, holders=True)
    if family is None:
        name = type(model).__name__
        if hasattr(model, "merge_and_unload"):
            raise ValueError(f"{name} holds adapters: pass what its merge_and_unload() returns")
        inside = [
            path for path, m in getattr(model, "named_modules", dict)() if path and family_of(m)
        ]
        hint = f"; pass its {inside[0]}" if inside else ""
        raise ValueError(f"{name} is not a supported encoder: expected exactly {SUPPORTED}{hint}")
    spec, sources = family.bind(model)
    check_tensors(sources)
    return spec, sources


def bind_encoder(model: PreTrainedModel) -> tuple[ViTSpec, dict[str, tuple[Tensor, ...]]]:
    """As bind, for the encoder in a supported `model` alone: pooler and head may be anything."""
    family = family_of(model)
    encoder = family.encoder_of(model)
    sources = family.encoder_sources(encoder)
    check_tensors(sources)
    return family.encoder_spec(encoder), sources


def check_tensors(sources: Mapping[str, tuple[Tensor, ...]]) -> None:
    """ValueError for tensors of a class of their own, on the meta device, or of several dtypes or devices."""
    # frequencies, which no kernel reads, keep a dtype of their own
    sources = {name: parts for name, parts in sources.items() if name != "rope_freqs"}
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
