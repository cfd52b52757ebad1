"""Watch: whether anything has changed in a tree of modules that a forward pass would notice, in microseconds a layer.

It looks at what others change in place: children and parameters put in another's place (adapters, quantization,
pruning, functional_call), their memory (`.to`, `.half`, `.data =`), classes, hooks, a `forward` set on an instance
or on a class, and plain attributes such as a dropout's p. Writes into that memory are not its business: Derived
(weights.py) watches what it was made from.
"""

from collections.abc import Iterable, Mapping
from gc import get_referents
from itertools import repeat
from operator import attrgetter, contains, is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

_hooks_of = attrgetter("_forward_hooks", "_forward_pre_hooks")
_address = torch._C.TensorBase.data_ptr
_size = torch._C.TensorBase.numel
_held_by = itemgetter("_modules", "_parameters", "_forward_hooks", "_forward_pre_hooks")
_requires_grad = torch._C.TensorBase.requires_grad.__get__


class Watch:
    """`modules` as they are now. `attributes`: names of plain attributes that count, by module class.

    root: a module whose children count, and nothing else of it. No reference to it is kept.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        attributes: Mapping[type, tuple[str, ...]] | None = None,
        root: nn.Module | None = None,
    ) -> None:
        modules = list(modules)
        owned = [m._modules for m in modules] + [m._parameters for m in modules]
        if root is not None:
            owned.append(root._modules)
        hooks = [d for m in modules for d in _hooks_of(m)]
        self._empty = [d for d in (*owned, *hooks) if not d]
        self._hooked = [(d, list(d)) for d in hooks if d]
        self._owned = [d for d in owned if d]
        self._members = get_referents(*self._owned)
        self.parameters: list[Tensor] = [t for t in self._members if isinstance(t, Tensor)]
        # == is identity, or True for two tensors of one and the same element
        self._careful = any(t.numel() == 1 for t in self.parameters)
        # a module is converted as a whole: its first parameter tells
        firsts = (next(iter(m._parameters.values()), None) for m in modules)
        self._first = [t for t in firsts if type(t) in (Tensor, nn.Parameter)]
        self._addresses = list(map(_address, self._first))
        self._sizes = list(map(_size, self._first))
        # held, so that other memory, of another dtype say, cannot come to lie at the same address
        self._storages = [t.untyped_storage() for t in self._first]
        self._modules = modules
        self._types = list(map(type, modules))
        self._classes = list(set(self._types))
        self._forwards = [cls.forward for cls in self._classes]
        self._dicts = [vars(m) for m in modules]
        # other dictionaries in their place: to clear all hooks, say
        self._held = list(map(_held_by, self._dicts))
        self._overridden = sum("forward" in d for d in self._dicts)
        self._attributes = [
            (itemgetter(*names), dicts)
            for cls, names in (attributes or {}).items()
            if (dicts := [vars(m) for m in modules if type(m) is cls])
        ]
        self._values = self._attribute_values()

    def unchanged(self) -> bool:
        return (
            self._same_members()
            and not any(self._empty)
            and list(map(_address, self._first)) == self._addresses
            and list(map(_size, self._first)) == self._sizes
            and list(map(type, self._modules)) == self._types
            and [cls.forward for cls in self._classes] == self._forwards
            and (not self._hooked or all(list(d) == keys for d, keys in self._hooked))
            and sum(map(contains, self._dicts, repeat("forward"))) == self._overridden
            and self._attribute_values() == self._values
        )

    def _same_members(self) -> bool:
        # the values of all those dicts as one list: in C, a quarter of the time that their iterators take
        now = get_referents(*self._owned)
        try:
            if list(map(_held_by, self._dicts)) != self._held:
                return False
            if self._careful:
                return len(now) == len(self._members) and all(map(is_, now, self._members))
            return now == self._members
        except RuntimeError:  # another tensor in a tensor's place: == has more than one element
            return False

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
