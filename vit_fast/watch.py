"""Watch: whether anything has changed in a tree of modules that a forward pass would notice, in microseconds a layer.

It looks at what others change in place: children and parameters put in another's place (adapters, quantization,
pruning, functional_call), their memory (`.to`, `.half`, `.data =`), classes, hooks, a `forward` set on an instance
or on a class, and plain attributes such as a dropout's p. Writes into that memory are not its business: Derived
(weights.py) watches what it was made from. Nor does it see a module's _parameters or _modules put away for another
dictionary: nobody is known to do that to a living module.
"""

from collections.abc import Iterable, Mapping
from gc import get_referents
from itertools import repeat
from operator import contains, is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

_config = itemgetter("config")
_hooks = itemgetter("_forward_hooks")
_pre_hooks = itemgetter("_forward_pre_hooks")
_address = torch._C.TensorBase.data_ptr
_requires_grad = torch._C.TensorBase.requires_grad.__get__

# id of a module that was watched -> how often a child was put into it
_puts: dict[int, int] = {}
_counting: list[bool] = []
_all_puts = 0


def _count_puts(module: nn.Module, name: str, child: nn.Module | None) -> None:
    global _all_puts
    if id(module) in _puts:
        _puts[id(module)] += 1
        _all_puts += 1


class Watch:
    """`modules` as they are now. `attributes`: names of plain attributes that count, by module class.

    root: a module whose own children, parameters and buffers count, and nothing else of it. No reference to it is kept.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        attributes: Mapping[type, tuple[str, ...]] | None = None,
        root: nn.Module | None = None,
    ) -> None:
        modules = list(modules)
        if not _counting:
            _counting.append(True)
            global_hooks.register_module_module_registration_hook(_count_puts)
        self._all_puts = _all_puts
        watched = map(id, modules if root is None else [*modules, root])
        self._puts = {i: _puts.setdefault(i, 0) for i in watched}
        owned = [m._modules for m in modules] + [m._parameters for m in modules]
        owned += [m._buffers for m in modules if m._buffers]
        if root is not None:
            owned += root._modules, root._parameters, root._buffers
        self._empty = [d for d in owned if not d]
        self._owned = [d for d in owned if d]
        self._members = get_referents(*self._owned)
        self.parameters: list[Tensor] = [t for t in self._members if isinstance(t, Tensor)]
        # == is identity, or True for two tensors of one and the same element
        self._careful = any(t.numel() == 1 for t in self.parameters)
        # a module is converted as a whole: its first parameter tells
        firsts = (next(iter(m._parameters.values()), None) for m in modules)
        self._first = [t for t in firsts if type(t) in (Tensor, nn.Parameter)]
        self._addresses = list(map(_address, self._first))
        # held, so that other memory, of another dtype say, cannot come to lie at the same address
        self._storages = [t.untyped_storage() for t in self._first]
        self._modules = modules
        self._types = list(map(type, modules))
        self._classes = list(set(self._types))
        self._forwards = [cls.forward for cls in self._classes]
        self._dicts = [vars(m) for m in modules]
        self._overridden = sum("forward" in d for d in self._dicts)
        self._hooked = self._all_hook_keys()
        self._attributes, configured = [], []
        for cls, names in (attributes or {}).items():
            dicts = [vars(m) for m in modules if type(m) is cls]
            plain = [name for name in names if name != "config"]
            if dicts and plain:
                self._attributes.append((itemgetter(*plain), dicts))
            configured += dicts if "config" in names else ()
        # by identity: configs of other attn_implementations are equal. Their fields are read at each call (state.py)
        self._configured = [d for d in configured if "config" in d]
        self._configs = list(map(_config, self._configured))
        self._values = self._attribute_values()

    def unchanged(self) -> bool:
        return (
            self.no_child_was_put()
            and self._same_members()
            and not any(self._empty)
            and list(map(_address, self._first)) == self._addresses
            and list(map(type, self._modules)) == self._types
            and [cls.forward for cls in self._classes] == self._forwards
            and self._same_hooks()
            and sum(map(contains, self._dicts, repeat("forward"))) == self._overridden
            and all(map(is_, map(_config, self._configured), self._configs))
            and self._attribute_values() == self._values
        )

    def no_child_was_put(self) -> bool:
        """False also where one was taken out and put back: PEFT does so with a layer that it merges an adapter into,
        and writes to its weight in a way that PyTorch does not count."""
        before = _all_puts
        if self._all_puts != before:
            if any(_puts[i] != count for i, count in self._puts.items()):
                return False
            self._all_puts = before
        return True

    def _same_members(self) -> bool:
        # the values of all those dicts as one list: in C, a quarter of the time that their iterators take
        now = get_referents(*self._owned)
        try:
            if self._careful:
                return len(now) == len(self._members) and all(map(is_, now, self._members))
            return now == self._members
        except RuntimeError:  # another tensor in a tensor's place: == has more than one element
            return False

    def _all_hook_keys(self) -> list[tuple[int, list[int], list[int]]]:
        pairs = zip(map(_hooks, self._dicts), map(_pre_hooks, self._dicts))
        return [(i, list(a), list(b)) for i, (a, b) in enumerate(pairs) if a or b]

    def _same_hooks(self) -> bool:
        # looked up in the modules each time: to clear all hooks, people put a new dictionary in the old one's place
        if not self._hooked:
            return not (any(map(_hooks, self._dicts)) or any(map(_pre_hooks, self._dicts)))
        return self._hooked == self._all_hook_keys()

    def wants_gradient(self) -> bool:
        """Whether one of the parameters requires a gradient."""
        return any(map(_requires_grad, self.parameters))

    def _attribute_values(self) -> list[Any]:
        return [list(map(get, dicts)) for get, dicts in self._attributes]

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()


def global_hooks_are_set() -> bool:
    """Whether hooks for all modules of the process are registered, which calls of inner modules would run."""
    return bool(global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks)
