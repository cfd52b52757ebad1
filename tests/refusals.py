"""What a refusal looks like."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(error: type[Exception], *parts: str) -> Iterator[None]:
    """`error` with a message of one line that has every part, in this order."""
    with pytest.raises(error, match=".*".join(re.escape(part) for part in parts)) as info:
        yield
    assert "\n" not in str(info.value)
    assert type(info.value) is error
