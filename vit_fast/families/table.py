"""What `vit-fast models` prints: the families, and what is the same for all of them."""

import textwrap

from transformers import __version__

from vit_fast.families import FAMILIES
from vit_fast.families.family import Family
from vit_fast.families.modules import VERSIONS

ALWAYS = (
    "a gradient that is wanted",
    "dropout in training mode",
    "autocast",
    "attn_implementation='eager'",
    "attention maps",
    "hooks, adapters and other modules inside the encoder",
    "quantized, sharded or offloaded weights",
    "torch.compile and torch.export",
)


def table() -> str:
    blocks = [_block(family.model_type, _facts(family)) for family in FAMILIES]
    title = f"of {VERSIONS}, here {__version__}"
    return "\n\n".join([title, *blocks, _block("all", {"falls back": ALWAYS})])


def _facts(family: Family) -> dict[str, tuple[str, ...]]:
    return {
        "as a whole": tuple(cls.__name__ for cls in family.forms),
        "inside": tuple(cls.__name__ for cls in family.holders),
        "fused": family.fused,
        "falls back": (*family.unused, *family.falls_back),
    }


def _block(name: str, facts: dict[str, tuple[str, ...]]) -> str:
    indent = 16
    lines = [
        textwrap.fill(
            ", ".join(found),
            100,
            initial_indent=f"    {what:{indent - 4}}",
            subsequent_indent=" " * indent,
            break_long_words=False,
        )
        for what, found in facts.items()
        if found
    ]
    return "\n".join([name, *lines])
