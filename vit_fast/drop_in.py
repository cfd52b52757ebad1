"""accelerate, restore, refresh: for any object that holds vision encoders of transformers."""

import warnings
from collections.abc import Iterator
from typing import TypeVar

from torch import nn

from vit_fast.explanation import Encoder, Explanation
from vit_fast.families import SUPPORTED, family_of
from vit_fast.families.modules import stock_class
from vit_fast.model import ViT
from vit_fast.ops import CPU
from vit_fast.state import state_of
from vit_fast.swap import refusal, swap, unswap

T = TypeVar("T")


def accelerate(model: T, *, cpu: str = "auto") -> T:
    """Makes the vision encoders in `model` run on vit-fast's engine, in place; returns `model`.

    model: an nn.Module, or an object with some among its attributes (a pipeline). Each outermost module whose class is
        exactly a supported one of transformers gets that class's fast twin: same name, same parameters, same state
        dict, same outputs. Where the fast path does not apply to a call, transformers' own forward runs: see explain().
    cpu: "auto", the fast operations of this CPU where it has them, which keep a packed copy of the weights of linear
        layers; or "plain", PyTorch's own, which keep one of q, k and v.

    Warns if there is nothing to accelerate. Calling it again changes nothing but `cpu`. restore() undoes it.
    """
    if cpu not in CPU:
        raise ValueError(f"cpu must be one of {', '.join(CPU)}, got {cpu!r}")
    found, refused = 0, []
    for name, module in _encoders(model):
        if reason := refusal(module):
            refused.append(f"{name or 'it'}: {reason}")
            continue
        for _, inner in _encoders(module, inside=True):
            unswap(inner)  # the outermost one answers
        if stock_class(module) is type(module) or state_of(module).cpu != cpu:
            swap(module, cpu)
        found += 1
    if not found:
        reasons = "; ".join(refused) or f"no {SUPPORTED} of exactly that class in it"
        warnings.warn(
            f"vit_fast.accelerate found nothing to do in a {type(model).__name__}: {reasons}",
            stacklevel=2,
        )
    return model


def restore(model: T) -> T:
    """Undoes accelerate(): each class is transformers' own again, and what was kept beside the weights is freed."""
    for _, module in _modules(model):
        if stock_class(module) is not type(module):
            unswap(module)
    return model


def refresh(model: T) -> T:
    """Forgets what was made from the weights, so that the next call makes it anew; returns `model`.

    Needed after writes past PyTorch's counter: through `.data`, NumPy or a flat buffer, by a collective of
    torch.distributed, or to parameters that were made in inference mode.
    """
    for _, module in _modules(model):
        if stock_class(module) is not type(module):
            state_of(module).bound = None
        elif isinstance(module, ViT):
            module.refresh()
    return model


def explain(model: object) -> Explanation:
    """Which vision encoders in `model` run fast, and why the others do not. Print it, or read its entries."""
    encoders = []
    for name, module in _encoders(model, unsupported=True):
        reason = ""
        if family_of(module) is None:
            reason = f"not a supported encoder ({SUPPORTED})"
        elif stock_class(module) is type(module):
            reason = refusal(module) or "not accelerated: call vit_fast.accelerate"
        encoders.append(Encoder.of(name, module, reason))
    return Explanation(tuple(encoders))


def _encoders(
    model: object, inside: bool = False, unsupported: bool = False
) -> Iterator[tuple[str, nn.Module]]:
    """The outermost supported modules in `model`, by name; `inside`: below `model` itself.

    With `unsupported` also the outermost models of transformers that take pixels and hold no supported one.
    """
    found: list[str] = []
    modules = list(_modules(model))
    for name, module in modules[1:] if inside else modules:
        if family_of(module) is not None and not _below(name, found):
            found.append(name)
            yield name, module
    if unsupported:
        for name, module in modules:
            takes_pixels = getattr(module, "main_input_name", "") == "pixel_values"
            if (
                takes_pixels
                and not _below(name, found)
                and not any(_below(f, [name]) for f in found)
            ):
                found.append(name)
                yield name, module


def _below(name: str, others: list[str]) -> bool:
    return any(not o or name == o or name.startswith(o + ".") for o in others)


def _modules(model: object) -> Iterator[tuple[str, nn.Module]]:
    """Every module in `model`, by name: of a module its named_modules(), of another object those of its attributes."""
    if isinstance(model, nn.Module):
        yield from model.named_modules()
        return
    held = vars(model).items() if hasattr(model, "__dict__") else ()
    trees = {
        name: list(m.named_modules(prefix=name)) for name, m in held if isinstance(m, nn.Module)
    }
    seen: set[int] = set()
    # the largest first, so that what lies in another's tree is named there
    for tree in sorted(trees.values(), key=len, reverse=True):
        if id(tree[0][1]) not in seen:
            seen.update(id(module) for _, module in tree)
            yield from tree
