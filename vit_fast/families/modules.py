"""Looking into live transformers modules: each must be exactly what it is expected to be.

A module that does more than its weights say (an adapter around a Linear, a hook, a forward of its own) would be
left out without a word by whoever reads the weights alone. So it is an error that says what to do.
"""

from typing import Any

import transformers
from torch import Tensor, nn
from transformers.utils import output_capturing

STOCK = "_vit_fast_stock"  # set on the class that a drop-in puts in place of transformers' own
VERSIONS = "transformers >= 5.17, < 6"


def stock_class(module: nn.Module) -> type:
    """The class of `module`, transformers' own where a drop-in has taken its place."""
    return vars(type(module)).get(STOCK, type(module))


def attribute(module: nn.Module, name: str) -> nn.Module | Tensor | None:
    if not hasattr(module, name):
        raise ValueError(
            f"{type(module).__name__} of transformers {transformers.__version__} has no {name!r}: "
            f"this layout is unknown, supported are {VERSIONS}"
        )
    return getattr(module, name)


def child(module: nn.Module, name: str, expected: type | tuple[type, ...]) -> nn.Module:
    return exactly(attribute(module, name), f"{type(module).__name__}.{name}", expected)


def exactly(module: nn.Module, name: str, expected: type | tuple[type, ...]) -> nn.Module:
    classes = expected if isinstance(expected, tuple) else (expected,)
    if stock_class(module) not in classes:
        names = " or ".join(cls.__name__ for cls in classes)
        raise ValueError(
            f"{name} is {type(module).__module__}.{type(module).__name__}, expected exactly {names}: "
            "merge adapters into the weights, or undo the quantization, first"
        )
    if "forward" in vars(module) or not is_stock(stock_class(module)):
        raise ValueError(
            f"{name} has a forward of its own, which would be left out: remove it first"
        )
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    # transformers puts hooks of its own on layers to record their outputs
    if any(getattr(hook, "__module__", "") != output_capturing.__name__ for hook in hooks):
        raise ValueError(f"{name} has forward hooks, which would be left out: remove them first")
    return module


# class -> its forward as it was when this library first saw it; a patch by functools.wraps looks the same by name
_forwards: dict[type, Any] = {}


def remember(*classes: type) -> None:
    for cls in classes:
        _forwards.setdefault(cls, cls.forward)


def is_stock(cls: type) -> bool:
    """Whether nobody has patched the class's forward."""
    remember(cls)
    here = cls.forward.__module__.startswith(("torch.nn.", "transformers."))
    return here and cls.forward is _forwards[cls]


def parameter(module: nn.Module, name: str) -> Tensor | None:
    """ValueError for a tensor that stands where a parameter should: nothing tells when it is replaced."""
    found = attribute(module, name)
    if found is not module._parameters.get(name):
        raise ValueError(f"{type(module).__name__}.{name} is not a parameter: expected a plain one")
    return found


def parameters_of(name: str, *modules: nn.Module) -> dict[str, tuple[Tensor, ...]]:
    """`name`.weight and .bias -> those of the modules, to be concatenated on axis 0.

    A bias that only some of them have is zero for the others; one that none has is left out.
    """
    found = {f"{name}.weight": tuple(parameter(m, "weight") for m in modules)}
    biases = [parameter(m, "bias") for m in modules]
    if any(b is not None for b in biases):
        parts = zip(biases, found[f"{name}.weight"])
        found[f"{name}.bias"] = tuple(
            w.detach().new_zeros(len(w)) if b is None else b for b, w in parts
        )
    return found


# how transformers' modules call their probabilities
_DROPOUTS = ("attention_dropout", "dropout", "dropout_prob", "drop_prob")


def active_dropout(modules: list[nn.Module]) -> str:
    """The name of a dropout's class that would drop something now, or ""."""
    for m in modules:
        if not m.training:
            continue
        found = [m.p] if isinstance(m, nn.Dropout) else map(vars(m).get, _DROPOUTS)
        p = max((p for p in found if isinstance(p, (int, float))), default=0)
        if p > 0:
            return f"{type(m).__name__} drops out {p} in training mode"
    return ""
