"""What SigLIP 2 (NaFlex) leaves to transformers, and what patches() refuses."""

import copy

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from cases import CASES
from models import images
from refusals import refused
from towers import agree, left, other_masks, pair, put, several
from twins import reasons
from vit_fast import ViT

BATCH = several()
MASK, SHAPES = BATCH["pixel_attention_mask"], BATCH["spatial_shapes"]


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(pixel_attention_mask=MASK[:, :16]), "mask must be (5, 17)"),
        (dict(pixel_attention_mask=MASK[:4]), "mask must be (5, 17)"),
        (dict(pixel_attention_mask=MASK[:, None, None]), "not a plain tensor [B, N]"),
        (dict(pixel_attention_mask=MASK.bool()[:, None, None].expand(5, 1, 17, 17)), "[B, N]"),
        (dict(pixel_attention_mask=MASK * (torch.arange(5) != 2)[:, None]), "no patch that counts"),
        (dict(pixel_attention_mask=MASK.tolist()), "not a plain tensor"),
        (dict(spatial_shapes=SHAPES[:4]), "for each of 5 images"),
        (dict(spatial_shapes=SHAPES[:1]), "for each of 5 images"),
        (dict(spatial_shapes=SHAPES * 2), "at most 17 patches"),
        (dict(spatial_shapes=SHAPES * 0), "at least 1"),
        (dict(spatial_shapes=SHAPES.float()), "spatial_shapes is not"),
        (dict(spatial_shapes=SHAPES.tolist()), "spatial_shapes is not"),
        (dict(spatial_shapes=SHAPES[:, 0]), "shapes must be [B, 2]"),
        (dict(spatial_shapes=None), "spatial_shapes is not"),
        (dict(pixel_values=BATCH["pixel_values"][..., 1:]), "pixels must be [B, N, 192]"),
        (dict(pixel_values=BATCH["pixel_values"][0]), "do not fit"),
        (dict(pixel_values=BATCH["pixel_values"][:0]), "do not fit"),
        (dict(pixel_values=BATCH["pixel_values"][:, :0]), "at most 0 patches"),
        (dict(pixel_values=images(2, 3, 32, 32)), "do not fit"),
        (dict(output_attentions=True), "output_attentions"),
        (dict(interpolate_pos_encoding=True), "interpolate_pos_encoding is given"),
        (dict(attention_mask=None), "attention_mask is given"),
    ],
)
def test_calls_left_to_transformers(change, why):
    stock, fast = pair("siglip2")
    left(fast, stock, why, **{**BATCH, **change})


@pytest.mark.parametrize("name", ["pixel_attention_mask", "spatial_shapes"])
def test_an_argument_that_is_missing(name):
    stock, fast = pair("siglip2")
    left(fast, stock, f"{name} is missing", **{k: v for k, v in BATCH.items() if k != name})


def first_positions(positions, shapes, max_length):
    return positions.flatten(0, 1)[:1].expand(len(shapes), max_length, -1)


@pytest.mark.parametrize("called", [False, True], ids=["at once", "after a call"])
@pytest.mark.parametrize(
    "change, why",
    [
        (lambda m: put(m.head, num_heads=4), "head.num_heads is 4"),
        (lambda m: put(m.embeddings, position_embedding_size=2), "16 positions"),
        (lambda m: put(m.embeddings, resize_positional_embeddings=first_positions), "your own"),
        (lambda m: m.head.register_forward_hook(lambda *a: a[2] * 2), "hooks"),
        (lambda m: m.head.attention.register_forward_hook(lambda *a: None), "hooks"),
        (
            lambda m: m.head.attention.out_proj.register_forward_hook(lambda *a: a[2] * 2),
            "out_proj has forward hooks",
        ),
        (
            lambda m: m.embeddings.patch_embedding.register_forward_hook(lambda *a: a[2] * 2),
            "hooks",
        ),
        (lambda m: put(m.embeddings.patch_embedding, weight=None), ""),
    ],
)
def test_left_to_transformers(change, why, called):
    stock, fast = pair("siglip2")
    if called:
        agree(fast, stock, **BATCH)
    change(stock), change(fast)
    left(fast, stock, why, **BATCH)


def test_the_head_may_have_a_config_of_its_own():
    stock, fast = pair("siglip2")
    for model in (stock, fast):
        model.head.config = copy.deepcopy(model.config)
    agree(fast, stock, **BATCH)
    for model in (stock, fast):
        model.head.config._attn_implementation = "eager"
    left(fast, stock, "'eager'", **BATCH)


def test_a_class_whose_resizing_was_patched(monkeypatch):
    stock, fast = pair("siglip2")
    agree(fast, stock, **BATCH)
    own = staticmethod(first_positions)
    monkeypatch.setattr(type(stock.embeddings), "resize_positional_embeddings", own)
    left(fast, stock, "your own", **BATCH)


def test_a_table_that_is_not_square():
    stock, fast = pair("siglip2", num_patches=18)
    left(fast, stock, "18 positions: expected a multiple of 8 x 8, and 4 x 4", **BATCH)


def test_other_ways_to_attend(monkeypatch):
    stock, fast = pair("siglip2")
    agree(fast, stock, **BATCH)
    fast.config._attn_implementation = "flash_attention_2"  # which is not installed
    with pytest.raises((ImportError, RuntimeError, TypeError, ValueError)):
        fast(**BATCH)
    assert "'flash_attention_2'" in reasons(fast)[0]
    fast.config._attn_implementation = "sdpa"
    agree(fast, stock, **BATCH)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS, "sdpa", other_masks)
    left(fast, stock, "mask function 'sdpa'", **BATCH)


@pytest.mark.parametrize(
    "change, parts",
    [
        (dict(pixels=torch.zeros(2, 4, 190)), ("pixels must be [B, N, 192]", "(2, 4, 190)")),
        (dict(pixels=images(2, 3, 32, 32)), ("pixels must be [B, N, 192]",)),
        (dict(shapes=[(2, 2)]), ("for each of 2 images",)),
        (dict(shapes=[(2, 2), (2, 3)]), ("at most 4 patches",)),
        (dict(shapes=[(2, 2), (0, 3)]), ("at least 1",)),
        (dict(shapes=torch.tensor([2, 2])), ("shapes must be [B, 2]", "(2,)")),
        (dict(shapes=torch.ones(2, 2)), ("integers", "torch.float32")),
        (dict(pixels=torch.zeros(0, 4, 192), shapes=torch.ones(0, 2).long()), ("of 0 images",)),
        (dict(pixels=torch.zeros(2, 4, 192).byte()), ("torch.uint8", "normalized floats")),
        (dict(mask=torch.ones(2, 5)), ("mask must be (2, 4)", "(2, 5)")),
        (dict(mask=torch.eye(2, 4) * torch.tensor([[1], [0]])), ("no patch that counts",)),
    ],
    ids=str,
)
def test_patches_that_do_not_fit(change, parts):
    vit = ViT.from_hf(CASES["siglip2"].model())
    given = dict(pixels=torch.zeros(2, 4, 192), shapes=[(2, 2), (1, 3)], mask=None)
    with refused(ValueError, *parts):
        vit.patches(**{**given, **change})


def test_patches_are_not_for_other_encoders():
    vit = ViT.from_hf(CASES["siglip"].model())
    with refused(ValueError, "not for a siglip encoder"):
        vit.patches(torch.zeros(2, 4, 192), [(2, 2), (2, 2)])
