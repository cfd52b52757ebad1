"""What a call of a transformers model asks for: its arguments, after what transformers' decorators do with them.

The decorators are `capture_outputs`, `can_return_tuple` and `merge_with_config_defaults` of transformers >= 5.17.
What is not understood here exactly is not answered here: transformers' own forward is called instead.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    flash_attention_mask,
    flex_attention_mask,
    sdpa_mask,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, output_capturing

# implementations of exact softmax attention that return no attention maps
EXACT_ATTENTION = ("sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")  # fmt: skip
# what transformers makes their masks with, and calls where no mask is given too; of the others flash_attention_mask
_MASKS = {"sdpa": sdpa_mask, "flex_attention": flex_attention_mask}


class Defaults(NamedTuple):
    """What a model's configs say of every call. `refused`: why none can be answered here, or ""."""

    hidden_states: Any
    attentions: Any
    refused: str
    attention: str  # attn_implementation
    functions: tuple[Any, Any]  # what it names


class Request(NamedTuple):
    """What a call asks for."""

    pixels: Tensor  # [B, C, H, W], any dtype; with shapes [B, N, p * p * C]
    states: tuple[int, ...]  # which hidden states
    with_states: bool  # hidden_states is part of the answer
    as_tuple: bool
    labels: Tensor | None = None
    loss: Mapping[str, Any] = {}  # what else the loss function is given
    shapes: Tensor | None = None  # [B, 2], see Embedding.patches
    mask: Tensor | None = None  # with shapes [B, N], else [B, h, w], see Embedding.padded
    # of a backbone: the hidden states that are feature maps, and what is hidden_states, entry by entry
    stages: tuple[int, ...] = ()
    shown: tuple[int, ...] | list[int | None] | None = None


class Answer(NamedTuple):
    """What the engine found."""

    tokens: Tensor
    states: tuple[Tensor | None, ...] | None  # hidden_states as transformers returns them
    kept: Mapping[
        int | str, Tensor
    ]  # the hidden states that were asked for by number, and "pooled"


def defaults_of(configs: Sequence[PreTrainedConfig]) -> Defaults:
    """What the configs that a model reads say, the encoder's first."""
    first, refused = configs[0], ""
    name = first._attn_implementation
    attend, mask = functions = functions_named(name)
    for config in configs:
        if config._attn_implementation not in EXACT_ATTENTION:
            refused = f"attn_implementation is {config._attn_implementation!r}, expected one of {EXACT_ATTENTION}"
        elif config._attn_implementation != name:
            refused = "the layers have several attn_implementations"
        elif config.return_dict is not True:
            refused = f"config.return_dict is {config.return_dict}"
        for field in ("is_causal", "tie_last_hidden_states"):
            if getattr(config, field, None) is not None:
                refused = f"config.{field} is set"
    if not refused and not getattr(attend, "__module__", "").startswith("transformers."):
        refused = f"the attention function {name!r} is not transformers' own"
    elif not refused and mask is not _MASKS.get(name, flash_attention_mask):
        refused = f"the mask function {name!r} is not transformers' own"
    states, attentions = (
        getattr(first, f"output_{k}", False) for k in ("hidden_states", "attentions")
    )
    return Defaults(states, attentions, refused, name, functions)


def functions_named(name: str) -> tuple[Any, Any]:
    """What attends, and what makes masks for it."""
    return ALL_ATTENTION_FUNCTIONS.get(name), ALL_MASK_ATTENTION_FUNCTIONS.get(name)


def states_wanted(encoder: PreTrainedModel, asked: Any, depth: int) -> tuple[int, ...] | str:
    """`output_hidden_states` -> the indices of those that the answer holds, or why that cannot be said."""
    if asked is True:
        return tuple(range(depth + 1))
    if not asked:
        return ()
    if hasattr(output_capturing, "resolve_hidden_states_indices"):
        selected = output_capturing.selected_hidden_states(asked)
        return tuple(output_capturing.resolve_hidden_states_indices(encoder, selected))
    # earlier releases take any number for True, and a list in a way of their own
    if isinstance(asked, int):
        return tuple(range(depth + 1))
    return f"output_hidden_states is {asked!r}"


def output_of(cls: type[ModelOutput], **fields: Any) -> ModelOutput:
    """cls(**fields), for all fields of `cls` in order, without the 10 us that its own checks take each time."""
    output = cls.__new__(cls)
    vars(output).update(fields)
    for name, value in fields.items():
        if value is not None:
            OrderedDict.__setitem__(output, name, value)
    return output


def hidden_states(
    request: Request, kept: Mapping[int, Tensor], depth: int
) -> tuple[Tensor | None, ...] | None:
    """depth + 1 entries, None for those that were not selected."""
    return tuple(map(kept.get, range(depth + 1))) if request.with_states else None
