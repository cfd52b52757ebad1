"""Looking into live transformers modules: each must be exactly what it is expected to be.

A module that does more than its weights say (an adapter around a Linear, a hook, a forward of its own) would be
left out without a word by whoever reads the weights alone. So it is an error that says what to do.
"""

import transformers
from torch import Tensor, nn

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


def child(module: nn.Module, name: str, expected: type) -> nn.Module:
    return exactly(attribute(module, name), f"{type(module).__name__}.{name}", expected)


def exactly(module: nn.Module, name: str, expected: type) -> nn.Module:
    if stock_class(module) is not expected:
        raise ValueError(
            f"{name} is {type(module).__module__}.{type(module).__name__}, expected exactly {expected.__name__}: "
            "merge adapters into the weights, or undo the quantization, first"
        )
    if "forward" in vars(module) or not _is_stock(expected):
        raise ValueError(
            f"{name} has a forward of its own, which would be left out: remove it first"
        )
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    # transformers puts hooks of its own on layers to record their outputs
    if any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks):
        raise ValueError(f"{name} has forward hooks, which would be left out: remove them first")
    return module


def _is_stock(cls: type) -> bool:
    return cls.forward.__module__.startswith(("torch.nn.", "transformers."))


def parameters_of(name: str, *modules: nn.Module) -> dict[str, tuple[Tensor, ...]]:
    """`name`.weight and .bias -> those of the modules, to be concatenated on axis 0."""
    found = {f"{name}.weight": tuple(m.weight for m in modules)}
    if len({m.bias is None for m in modules}) > 1:
        raise ValueError(f"{name}: q, k and v must all have a bias or none, some have one here")
    if modules[0].bias is not None:
        found[f"{name}.bias"] = tuple(m.bias for m in modules)
    return found


def active_dropout(modules: list[nn.Module]) -> str:
    """The name of a dropout's class that would drop something now, or ""."""
    for m in modules:
        p = getattr(m, "p", 0) if isinstance(m, nn.Dropout) else getattr(m, "attention_dropout", 0)
        if m.training and p > 0:
            return f"{type(m).__name__} drops out {p} in training mode"
    return ""
