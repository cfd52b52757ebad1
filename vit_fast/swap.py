"""The class that stands in for a transformers class.

It is a subclass that carries the stock __name__, __qualname__ and __module__, because transformers keys the recording
of outputs and the conversion of checkpoints by them. Its forward asks the model's State for a fast answer; where there
is none, transformers' own forward answers, and the reason is kept for explain().
"""

import copyreg
import functools

import torch
from torch import nn
from transformers import PreTrainedModel

from vit_fast.families.modules import STOCK, is_stock, stock_class
from vit_fast.state import KEY, State, state_of

SHARDED = ("FullyShardedDataParallel", "FSDPModule")

_CLASSES: dict[type, type] = {}


class Twin(type):
    """The class of fast classes. What is an instance or a subclass of one is what is of the stock class, and it is
    pickled as "the fast class of" that.
    """

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, vars(cls).get(STOCK, ())) or super().__instancecheck__(instance)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, vars(cls).get(STOCK, ())) or super().__subclasscheck__(other)


def _reduce_class(cls: type) -> str | tuple:
    stock = vars(cls).get(STOCK)
    return cls.__qualname__ if stock is None else (fast_class, (stock,))


copyreg.pickle(Twin, _reduce_class)


def fast_class(stock: type) -> type:
    """The subclass of `stock` that answers fast. One for each stock class."""
    if stock not in _CLASSES:
        _CLASSES.setdefault(stock, _make(stock))
    return _CLASSES[stock]


def _make(stock: type) -> type:
    @functools.wraps(stock.forward)
    def forward(self, *args, **kwargs):
        # a compiled graph can check nothing: it is made of transformers' own forward
        if torch.compiler.is_compiling() or type(self) is not fast or "_is_replica" in vars(self):
            return stock.forward(self, *args, **kwargs)
        state = state_of(self)
        if is_stock(stock):
            output = state.answer(self, args, kwargs)
        else:
            output = f"{stock.__name__}.forward was patched"
        if type(output) is not str:
            state.note("")
            return output
        state.note(output)
        return stock.forward(self, *args, **kwargs)

    def apply(self, fn, recurse=True):
        # to another device or dtype: what was made of the old weights goes first
        if type(self) is fast:
            state_of(self).forget()
        return super(fast, self)._apply(fn, recurse)

    def save_pretrained(self, *args, **kwargs):
        if type(self) is not fast:
            return stock.save_pretrained(self, *args, **kwargs)
        self.__class__ = stock
        try:
            return self.save_pretrained(*args, **kwargs)
        finally:
            self.__class__ = fast

    def from_pretrained(cls, *args, **kwargs):
        if cls is not fast:
            return super(fast, cls).from_pretrained(*args, **kwargs)
        loaded = stock.from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if not refusal(model):
            swap(model)
        return loaded

    def reduce(self, protocol):
        if type(self) is not fast:
            return super(fast, self).__reduce_ex__(protocol)
        _, _, state, *rest = super(fast, self).__reduce_ex__(protocol)
        state = {name: value for name, value in state.items() if name != KEY}
        kept = state_of(self)
        return (_restored, (stock, kept.cpu, kept.graphs), state, *rest)

    wrap = functools.wraps
    fast = Twin(
        stock.__name__,
        (stock,),
        {
            "__module__": stock.__module__,
            "__qualname__": stock.__qualname__,
            "__doc__": stock.__doc__,
            "__reduce_ex__": reduce,
            "_apply": apply,
            "forward": forward,
            "from_pretrained": classmethod(wrap(stock.from_pretrained.__func__)(from_pretrained)),
            "save_pretrained": wrap(stock.save_pretrained)(save_pretrained),
            STOCK: stock,
        },
    )
    return fast


def refusal(module: nn.Module) -> str:
    """Why a module of a supported class is left as it is, or ""."""
    if "forward" in vars(module):
        return (
            "a forward is set on the instance, by hooks of device_map, say, and would be left out: "
            "remove it first (accelerate.hooks.remove_hook_from_module)"
        )
    if any(cls.__name__ in SHARDED for m in module.modules() for cls in type(m).__mro__):
        return "its weights are sharded by FSDP"
    return ""


def _restored(stock: type, cpu: str, graphs: bool) -> PreTrainedModel:
    """What pickle and copy start from; they fill its __dict__ afterwards."""
    model = stock.__new__(stock)
    swap(model, cpu, graphs)
    return model


def swap(model: PreTrainedModel, cpu: str = "auto", graphs: bool = True) -> None:
    """From now on `model`, of a stock class or accelerated already, answers fast where it can."""
    model.__class__ = fast_class(stock_class(model))
    vars(model)[KEY] = State(model, cpu, graphs)


def unswap(model: PreTrainedModel) -> None:
    """Exactly as it was."""
    model.__class__ = stock_class(model)
    state = vars(model).pop(KEY, None)
    if state is not None and state.owner() is model:
        state.forget()
