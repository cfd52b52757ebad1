"""`vit-fast models`, and the names that vit_fast has: both are the families, and no list beside them."""

import re

import pytest
import transformers

import vit_fast
from vit_fast import cli
from vit_fast.families import FAMILIES, classes
from vit_fast.families.modules import stock_class


@pytest.fixture
def printed(capsys):
    assert cli.main(["models"]) == 0
    return capsys.readouterr().out


def test_models_prints_every_class(printed):
    names = re.findall(r"\w+", printed)
    for name in {*classes(), *vit_fast.MODELS}:
        assert names.count(name) == 1, name


def test_models_prints_what_a_family_says(printed):
    blocks = {block.split("\n")[0]: " ".join(block.split()) for block in printed.split("\n\n")}
    assert list(blocks)[1:] == [*(family.model_type for family in FAMILIES), "all"]
    for family in FAMILIES:
        found = blocks[family.model_type]
        assert family.fused
        for fact in (*family.fused, *family.unused, *family.falls_back):
            assert fact in found, (family.model_type, fact)
        for cls in family.forms:
            assert found.index("as a whole") < found.index(cls.__name__) < found.index("fused")
        for cls in family.holders:
            assert found.index("inside") < found.index(cls.__name__) < found.index("fused")
    assert all(len(line) <= 100 for line in printed.splitlines())


def test_names_of_vit_fast_are_the_families():
    """Every class that transformers has by its name at the top; Idefics' encoders it has not."""
    exported = sorted(
        name for name, cls in classes().items() if getattr(transformers, name, None) is cls
    )
    assert list(vit_fast.MODELS) == exported


@pytest.mark.parametrize("name", vit_fast.MODELS)
def test_import_of_each_name(name):
    cls = getattr(vit_fast, name)
    stock = getattr(transformers, name)
    assert issubclass(cls, stock)
    assert (cls.__name__, cls.__module__) == (name, stock.__module__)
    assert stock in (vars(cls).get("_vit_fast_stock"), stock_class(cls))
