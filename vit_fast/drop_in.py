"""accelerate, restore, refresh, warmup: for any object that holds vision encoders of transformers."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from vit_fast.explanation import Encoder, Explanation
from vit_fast.families import SUPPORTED, family_of
from vit_fast.families.modules import stock_class
from vit_fast.graphed import check_shape
from vit_fast.model import ViT
from vit_fast.ops import CPU
from vit_fast.state import state_of
from vit_fast.swap import refusal, swap, unswap

T = TypeVar("T")


def accelerate(model: T, *, cpu: str = "auto", graphs: bool = True) -> T:
    """Makes the vision encoders in `model` run on vit-fast's engine, in place; returns `model`.

    model: an nn.Module, or an object with some among its attributes (a pipeline). Each outermost module whose class is
        exactly a supported one of transformers gets that class's fast twin: same name, same parameters, same state
        dict, same outputs. Where the fast path does not apply to a call, transformers' own forward runs: see explain().
    cpu: "auto", the fast operations of this CPU where it has them, which keep a packed copy of the weights of linear
        layers; or "plain", PyTorch's own, which keep one of q, k and v.
    graphs: on a GPU, launch the encoder for up to 64 images as one CUDA graph, captured at the first call of its shape
        or by warmup(). False: launch kernel by kernel, and take no memory for graphs.

    Warns if there is nothing to accelerate. Calling it again changes nothing but `cpu` and `graphs`. restore() undoes
    it.
    """
    if cpu not in CPU:
        raise ValueError(f"cpu must be one of {', '.join(CPU)}, got {cpu!r}")
    found, refused = 0, []
    encoders = list(_encoders(model))
    outermost = {id(module) for _, module in encoders}
    for name, module in encoders:
        if reason := refusal(module):
            refused.append(f"{name or 'it'}: {reason}")
            continue
        for _, inner in _encoders(module, inside=True):
            if id(inner) not in outermost:  # it may have another place of its own
                unswap(inner)  # the outermost one answers
        found += 1
        swapped = stock_class(module) is not type(module)
        if swapped and (state_of(module).cpu, state_of(module).graphs) == (cpu, graphs):
            continue
        if swapped:
            state_of(module).forget()
        swap(module, cpu, graphs)
    if not found:
        reasons = "; ".join(refused) or f"it holds none ({SUPPORTED})"
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
            state_of(module).forget()
        elif isinstance(module, ViT):
            module.refresh()
    return model


def warmup(
    model: T, shapes: Iterable[Sequence[int]], dtype: torch.dtype | None = None, **call: Any
) -> T:
    """Calls each accelerated encoder, or ViT, in `model` with zeros of each of `shapes`, (B, C, H, W); returns `model`.

    So that no later call of these shapes captures a CUDA graph or compiles a kernel; on a CPU what is derived from
    weights is made. dtype: of the pixels to come, None for the model's. call: arguments of the calls to come:
    output_hidden_states=True, or interpolate_pos_encoding=True for sizes that are not the model's own; of a ViT those
    of features().

    Warns where transformers' own forward answers, or nothing is there to warm up. ValueError for a shape that is none.
    """
    for shape in (shapes := list(shapes)):
        check_shape(shape)
    found = False
    for _, module in _modules(model):
        if isinstance(module, ViT):
            found = True
            module.warmup(shapes, dtype, **call)
    for name, module in _encoders(model):
        if stock_class(module) is type(module):
            continue
        found = True
        state = state_of(module)
        for shape in shapes:
            if state.bound is not None and state.bound.engine is not None:
                state.bound.engine.capture_now()
            with torch.inference_mode():
                pixels = torch.zeros(*shape, dtype=dtype or module.dtype, device=module.device)
                module(**family_of(module).given(module, pixels), **call)
            if not state.last_was_fast:
                warnings.warn(
                    f"vit_fast.warmup: {name or 'the model'} runs transformers' own forward: {state.last_reason}",
                    stacklevel=2,
                )
    if not found:
        warnings.warn(
            f"vit_fast.warmup found nothing accelerated in a {type(model).__name__}", stacklevel=2
        )
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
