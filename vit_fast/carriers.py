"""Importable classes of models that hold a vision encoder, SiglipModel say: transformers' own, made and accelerated.

`vit_fast.SiglipModel.from_pretrained(...)` and `vit_fast.SiglipModel(config)` give an instance of transformers' own
class whose encoder is accelerated inside. (A class whose forward is answered as a whole has a twin: swap.py.)
"""

import copyreg
import functools
from typing import Any

from transformers import PreTrainedModel

from vit_fast.drop_in import accelerate
from vit_fast.families import FAMILIES, classes
from vit_fast.families.modules import STOCK
from vit_fast.swap import Twin, fast_class

_CLASSES: dict[type, type] = {}


class Carrier(Twin):
    """The class of such classes; one that is derived from one of them makes instances of its own."""

    def __call__(cls, *args: Any, **kwargs: Any) -> PreTrainedModel:
        stock = vars(cls).get(STOCK)
        return accelerate(
            super().__call__(*args, **kwargs) if stock is None else stock(*args, **kwargs)
        )


def importable(name: str) -> type[PreTrainedModel]:
    """What `from vit_fast import name` gives: the twin of a class that is answered as a whole, else a carrier."""
    stock = classes()[name]
    answered = any(stock in family.forms for family in FAMILIES)
    return fast_class(stock) if answered else carrier_class(stock)


def carrier_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """One for each stock class."""
    if stock not in _CLASSES:
        _CLASSES.setdefault(stock, _make(stock))
    return _CLASSES[stock]


def _make(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    def from_pretrained(cls, *args, **kwargs):
        source = stock if cls is carrier else super(carrier, cls)
        loaded = source.from_pretrained(*args, **kwargs)
        accelerate(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    wrapped = functools.wraps(stock.from_pretrained.__func__)(from_pretrained)
    named = {name: getattr(stock, name) for name in ("__module__", "__qualname__", "__doc__")}
    carrier = Carrier(
        stock.__name__, (stock,), {**named, "from_pretrained": classmethod(wrapped), STOCK: stock}
    )
    return carrier


copyreg.pickle(
    Carrier,
    lambda cls: (carrier_class, (vars(cls)[STOCK],)) if STOCK in vars(cls) else cls.__qualname__,
)
