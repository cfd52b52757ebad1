"""What an accelerated model keeps beside its weights: the engine that reads them, and what became of its calls.

A call is answered by the engine, or refused with a reason, and then transformers' own forward answers.
"""

import inspect
import threading
import warnings
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from vit_fast.families import bind_encoder, family_of
from vit_fast.families.calls import (
    Answer,
    Defaults,
    defaults_of,
    functions_named,
    hidden_states,
)
from vit_fast.families.family import Family
from vit_fast.families.modules import active_dropout, stock_class
from vit_fast.model import ViT
from vit_fast.ops import Ops, choose_ops
from vit_fast.recorder import CudaRecorder
from vit_fast.runtime import autocast_is_on, mode_forbids
from vit_fast.spec import ViTSpec
from vit_fast.watch import Watch, global_hooks_are_set

KEY = "_vit_fast"  # in the instance's __dict__


class Bound(NamedTuple):
    """What a model was found to be. `refused`: why transformers' own forward has to run, or "" and an engine."""

    watch: "Watch | Always"
    config: PreTrainedConfig
    refused: str
    engine: ViT | None = None
    ops: Ops | None = None
    ops_reason: str = ""
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    configs: "tuple[PreTrainedConfig, ...]" = ()
    onednn: bool = True  # PyTorch's switch, torch.backends.mkldnn.enabled, as it was

    def is_of(self, model: PreTrainedModel) -> bool:
        return (
            model.config is self.config
            and torch.backends.mkldnn.enabled == self.onednn
            and self.watch.unchanged()
        )


class State:
    """Beside one accelerated model: the engine that reads its weights, and what became of its calls."""

    def __init__(self, model: PreTrainedModel, cpu: str, graphs: bool = True) -> None:
        # no reference back to the model: it would not be freed with its last one
        self.owner = weakref.ref(model)
        self.family: Family = family_of(model)
        self.cpu, self.graphs = cpu, graphs
        self.recorder = CudaRecorder  # what makes the engine's CUDA graphs
        self.form = self.family.form_of(model)
        parameters = inspect.signature(stock_class(model).forward).parameters.values()
        self.arguments = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)[1:]
        self.bound: Bound | None = None
        self.lock = threading.Lock()
        # the configs; their fields, live and as they were when they were read; what they say of every call
        self.known: tuple[tuple, list[tuple[dict, dict]], Defaults] | None = None
        self.fast_calls = self.other_calls = 0
        self.last_was_fast: bool | None = None
        self.last_reason = ""
        self.warned = False

    def binding(self, model: PreTrainedModel) -> Bound:
        """The engine for the model as it is now; made anew where something was changed."""
        bound = self.bound
        if bound is None or not bound.is_of(model):
            with self.lock:
                bound = self.bound
                if bound is None or not bound.is_of(model):
                    switch = torch.backends.mkldnn.enabled
                    # outside inference mode, so that its tensors may be used anywhere
                    with torch.inference_mode(False):
                        bound = self.bound = self._bind(model)._replace(onednn=switch)
        return bound

    def _bind(self, model: PreTrainedModel) -> Bound:
        watch = None
        try:
            inner = [m for c in self.family.encoder_parts(model) for m in c.modules()]
            watch = Watch(inner, self.family.watched, root=model)
            spec, sources = bind_encoder(model)
            return self._engine(model, watch, spec, sources, active_dropout(inner))
        except ValueError as error:
            reason = str(error)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
            # a model put together in a way that was not thought of
            reason = f"cannot read the model ({type(error).__name__}: {error})"
        return Bound(watch or Always(), model.config, reason)

    def _engine(
        self, model: PreTrainedModel, watch: Watch, spec: ViTSpec, sources: Mapping, dropout: str
    ) -> Bound:
        config = model.config
        if dropout:
            return Bound(watch, config, dropout)
        weight = sources["patch_embed.proj.weight"][0]
        ops, why = choose_ops(weight.device, weight.dtype, spec.head_dim, self.cpu)
        if weight.device.type != "cpu" and ops.name == "torch":
            return Bound(watch, config, why)
        engine = self.bound.engine if self.bound else None
        if (
            engine is not None
            and engine.spec == spec
            and self.bound.ops is ops
            and self.bound.watch.no_child_was_put()
        ):
            engine.read(sources)  # what was derived from unchanged weights is kept
        else:
            if engine is not None:
                engine.release_graphs()
            engine = ViT.reading(spec, sources)
            engine.graphs, engine.recorder = self.graphs, self.recorder
        configs = tuple(self.family.configs(model))
        return Bound(watch, config, "", engine, ops, why, weight.device, weight.dtype, configs)

    def defaults(self, configs: tuple[PreTrainedConfig, ...]) -> Defaults:
        """What the configs say, read again where a field of theirs, or a function that they name, has changed."""
        known = self.known
        if known is not None and known[0] is configs:
            same = all(_same(fields, before) for fields, before in known[1])
            if same and known[2].functions == functions_named(known[2].attention):
                return known[2]
        fields = [(vars(config), dict(vars(config))) for config in configs]
        self.known = configs, fields, defaults_of(configs)
        return self.known[2]

    def answer(self, model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The output of a call, or the reason why transformers' own forward has to give it, a str."""
        if mode := mode_forbids():
            return mode
        if torch.jit.is_tracing():
            return "torch.jit is tracing"
        if global_hooks_are_set():
            return "hooks for all modules are set"
        bound = self.binding(model)
        if bound.refused:
            return bound.refused
        defaults = self.defaults(bound.configs)
        if defaults.refused:
            return defaults.refused
        engine = bound.engine
        arguments = dict(zip(self.arguments, args))
        if len(args) > len(self.arguments) or (kwargs and not arguments.keys().isdisjoint(kwargs)):
            return "the arguments do not fit"
        arguments.update(kwargs)
        request = self.family.request(engine.spec, bound.device, model, arguments, defaults)
        if type(request) is str:
            return request
        pixels = request.pixels
        if autocast_is_on(bound.device):
            return "autocast is on"
        if torch.is_grad_enabled() and (pixels.requires_grad or bound.watch.wants_gradient()):
            self._warn(model)
            what = "the pixels require" if pixels.requires_grad else "a parameter requires"
            return f"a gradient is wanted: grad mode is on, and {what} one"
        try:
            if request.shapes is not None:
                pixels = engine.patches(pixels, request.shapes, request.mask)
            elif request.mask is not None:
                pixels = engine.padded(pixels, request.mask)
            keep = (*request.states, "pooled") if engine.pools_in_pass() else request.states
            tokens, kept = engine.run(pixels, bound.ops, self.form.rows, keep, bound.dtype)
        except ValueError as error:  # an operation that does not take these tensors says so
            return str(error)
        states = hidden_states(request, kept, engine.spec.depth)
        output = self.form.answer(model, request, Answer(tokens, states, kept))
        return output.to_tuple() if request.as_tuple else output

    def forget(self) -> None:
        """Drops the engine, with all that it holds; the next call makes a new one."""
        with self.lock:  # not while another thread binds the same engine once more
            bound, self.bound = self.bound, None
        if bound is not None and bound.engine is not None:
            bound.engine.release_graphs()

    def _warn(self, model: PreTrainedModel) -> None:
        if model.training or self.warned:
            return
        self.warned = True
        warnings.warn(
            f"{type(model).__name__} runs transformers' own forward because a gradient is wanted: wrap the call in "
            "torch.inference_mode() (or freeze the model with requires_grad_(False)) to run it fast",
            stacklevel=6,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()

    def note(self, reason: str) -> None:
        self.last_was_fast = not reason
        if reason:
            self.last_reason = reason
            self.other_calls += 1
        else:
            self.fast_calls += 1


def state_of(model: PreTrainedModel) -> State:
    """The state of an accelerated model; a new one for a shallow copy, which came with its original's."""
    state = vars(model).get(KEY)
    if state is None or state.owner() is not model:
        state = vars(model)[KEY] = (
            State(model, state.cpu, state.graphs) if state else State(model, "auto")
        )
    return state


def _same(fields: dict[str, Any], before: dict[str, Any]) -> bool:
    try:
        return fields == before
    except (RuntimeError, ValueError):  # an array in an array's place
        return False


class Always:
    """Stands for a Watch where none can be made: changed at every look."""

    def unchanged(self) -> bool:
        return False
