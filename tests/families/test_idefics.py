"""The towers of Idefics2, Idefics3 and SmolVLM beyond the matrix: masks, positions by fractions, the models around."""

import copy

import pytest
import torch
from transformers import SmolVLMConfig, SmolVLMModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

import vit_fast
from accuracy import assert_as_accurate
from cases import IDEFICS, SIGLIP, double
from models import DEVICE, TINY, images, in_float64, needs_triton, randomize
from refusals import refused
from towers import STATES, agree, agree_in, left, other_masks, pair, put, states_agree
from twins import PIXELS, reasons
from vit_fast import ViT, families, state, triton_ops
from vit_fast.positions import nearest_positions

WIDE = images(4, 3, 45, 63)  # 5 x 7 patches and what no patch sees


def box(*sizes: tuple[int, int], whole: tuple[int, int] = (5, 7)) -> torch.Tensor:
    """The mask of images of these sizes in patches, each in the corner of `whole`."""
    mask = torch.zeros(len(sizes), *whole, dtype=torch.bool)
    for row, (h, w) in zip(mask, sizes):
        row[:h, :w] = True
    return mask


BOXES = box((5, 7), (2, 3), (1, 1), (5, 4))


@pytest.fixture(scope="module", params=IDEFICS)
def towers(request):
    return pair(request.param)


@pytest.mark.parametrize("asked", STATES, ids=str)
def test_hidden_states(towers, asked):
    states_agree(*towers[::-1], asked, PIXELS)


@pytest.mark.parametrize(
    "call",
    [
        dict(return_dict=False, output_hidden_states=True),
        dict(return_dict=None),
        dict(output_attentions=False),
        dict(patch_attention_mask=None),
    ],
    ids=str,
)
def test_forms(towers, call):
    stock, fast = towers
    agree(fast, stock, PIXELS, **call)
    call.pop("patch_attention_mask", None)
    agree(fast, stock, WIDE, box(*[(5, 7)] * 4), **call)
    agree(fast, stock, WIDE, BOXES, **call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_images_of_several_sizes(towers, dtype):
    """Padding's rows too; a mask need not be a box, and its first row and column give the image's size."""
    stock, fast = (m.to(dtype) for m in copy.deepcopy(towers))
    draw = torch.Generator().manual_seed(0)
    holes = torch.rand(BOXES.shape, generator=draw) < 0.7
    holes[:, 0, 0] = True
    pixels = WIDE.to(dtype)
    for mask in (BOXES, BOXES.flip(1, 2) | BOXES, holes):
        with torch.no_grad():
            ours, theirs = fast(pixels, mask), stock(pixels, mask)
            reference = in_float64(stock)(pixels.double(), mask)
        assert reasons(fast) == []
        assert_as_accurate(ours[0], reference[0], theirs[0])


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_on_the_kernels(dtype, monkeypatch):
    """A patch of 7: rows of 147 values, whose addresses are odd."""
    monkeypatch.setattr(state, "choose_ops", lambda *args: (triton_ops(), "in a test"))
    stock, fast = (m.to(DEVICE) for m in pair("smolvlm", dtype, patch_size=7, image_size=28))
    inputs = dict(
        pixel_values=images(2, 3, 22, 30, dtype=dtype).to(DEVICE),
        patch_attention_mask=box((3, 4), (2, 1), whole=(3, 4)).to(DEVICE),
    )
    with torch.no_grad():
        ours, theirs = fast(**inputs), stock(**inputs)
        reference = in_float64(stock)(**double(inputs))
    assert reasons(fast) == []
    assert_as_accurate(ours[0], reference[0], theirs[0])


# tables for which fp32 puts a patch of their own grid on its neighbour's row, or half precision does
@pytest.mark.parametrize("side", [7, 9, 10, 19])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_patches_on_the_border_of_two_rows(side, dtype):
    """transformers 5.17 rounds the fractions to the pixels' dtype, later releases do not."""
    size = 2 * side
    stock, fast = pair("idefics3", dtype, patch_size=2, image_size=size, num_hidden_layers=1)
    agree(fast, stock, images(1, 3, size, size, dtype=dtype))
    engine, embeddings = ViT.from_hf(stock), stock.embeddings
    for p in embeddings.patch_embedding.parameters():
        p.zero_()  # what is left are the positions
    for grid in ((side, side), (3, 9), (12, 5)):
        pixels = torch.zeros(1, 3, 2 * grid[0], 2 * grid[1], dtype=dtype)
        mask = torch.ones(1, *grid, dtype=torch.bool)
        with torch.no_grad():
            assert torch.equal(embeddings(pixels, mask)[0], engine.patch_positions(grid))
            mask[:, 1:] = False
            assert torch.equal(embeddings(pixels, mask), engine.padded(pixels, mask).positions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_patches_behind_the_image(dtype):
    """Of a mask that is no box: where their places are rounded to one, that is on the next line of some tables."""
    stock, fast = pair("idefics2", dtype, image_size=7 * 8)
    mask = torch.ones(2, 1, 33, dtype=torch.bool)
    mask[:, :, 10:20] = False  # by their count the images are 23 across
    agree(fast, stock, images(2, 3, 8, 33 * 8, dtype=dtype), mask)


def test_the_nearest_row_is_not_always_a_patch_s_own():
    table = torch.arange(361.0)[:, None]
    assert not torch.equal(nearest_positions(table, 19, (19, 19), (19, 19)), table)


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(patch_attention_mask=BOXES.long()), "not a plain tensor of bool"),
        (dict(patch_attention_mask=BOXES.tolist()), "not a plain tensor of bool"),
        (dict(patch_attention_mask=BOXES[:, :4]), "(4, 5, 7)"),
        (dict(patch_attention_mask=BOXES[:1]), "(4, 5, 7)"),
        (dict(patch_attention_mask=BOXES.flatten(1)), "(4, 5, 7)"),
        (dict(patch_attention_mask=BOXES.mT.contiguous().mT), "not contiguous"),
        (dict(patch_attention_mask=torch.zeros_like(BOXES)), "no patch in its first row"),
        (dict(pixel_values=WIDE.double()), "unlike the weights"),
        (dict(pixel_values=WIDE.to(torch.uint8)), "unlike the weights"),
        (dict(pixel_values=WIDE[..., :7]), "hold no patch"),
        (dict(pixel_values=WIDE[:, :2]), "do not fit"),
        (dict(pixel_values=WIDE[0]), "are not [B, C, H, W]"),
        (dict(output_attentions=True), "output_attentions"),
        (dict(interpolate_pos_encoding=True), "interpolate_pos_encoding is given"),
    ],
)  # fmt: skip
def test_calls_left_to_transformers(change, why):
    stock, fast = pair("idefics2")
    call = {"pixel_values": WIDE, "patch_attention_mask": BOXES, **change}
    left(fast, stock, why, **call)


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda m: put(m, patch_size=4), "patch_size was changed"),
        (lambda m: put(m.embeddings, num_patches_per_side=2), "num_patches_per_side is 2"),
        (lambda m: put(m.embeddings, patch_size=4), "embeddings.patch_size is 4"),
        (lambda m: m.embeddings.register_forward_hook(lambda *a: a[2] * 2), "hooks"),
        (lambda m: m.encoder.register_forward_hook(lambda *a: None), "hooks"),
        (lambda m: put(m.encoder.layers[0].self_attn, scale=1.0), "scale 1.0"),
    ],
)
def test_left_to_transformers(change, why):
    stock, fast = pair("idefics3")
    agree(fast, stock, PIXELS)
    change(stock), change(fast)
    left(fast, stock, why, PIXELS)


@pytest.mark.parametrize("name", ["patch_embedding.weight", "position_embedding.weight"])
def test_written_in_place(name, towers):
    stock, fast = copy.deepcopy(towers)
    before = agree(fast, stock, WIDE, BOXES)
    agree(fast, stock, PIXELS)
    for model in (stock, fast):
        model.get_parameter(f"embeddings.{name}").mul_(1.5).add_(0.1)
    after = agree(fast, stock, WIDE, BOXES)
    assert not torch.allclose(before[0], after[0], atol=1e-3)
    agree(fast, stock, PIXELS)


def test_images_in_one_size_that_do_not_fit():
    vit = ViT.from_hf(pair("idefics2")[0])
    with refused(ValueError, "mask must be (4, 5, 7)", "(4, 7, 5)"):
        vit.padded(WIDE, BOXES.transpose(1, 2))
    with refused(ValueError, "pixels must be [B, 3, H, W]", "(3,"):
        vit.padded(WIDE[0], BOXES)
    with refused(ValueError, "torch.uint8", "normalized floats"):
        vit.padded(WIDE.byte(), BOXES)
    # a processor's mask is of integers
    assert torch.equal(vit.padded(WIDE, BOXES.int()).positions, vit.padded(WIDE, BOXES).positions)
    with refused(ValueError, "padded images are not for a siglip encoder"):
        ViT.from_hf(pair("siglip")[0]).padded(WIDE, BOXES)


def test_inside_smolvlm():
    """Its processor's mask of pixels becomes one of patches; an image of zeros is none."""
    text = dict(
        model_type="llama",
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=50,
    )
    config = SmolVLMConfig(
        vision_config={**TINY, **SIGLIP}, text_config=text, scale_factor=2, image_token_id=49
    )
    stock = randomize(SmolVLMModel(config)).eval().requires_grad_(False)
    stock.set_attn_implementation("sdpa")
    fast = vit_fast.accelerate(copy.deepcopy(stock))
    pixels = images(4, 3, 32, 32).view(2, 2, 3, 32, 32).clone()
    pixels[1, 1] = 0
    seen = torch.ones(2, 2, 32, 32, dtype=torch.long)
    seen[0, 1, 16:] = 0
    for mask in (None, seen):
        agree_in(lambda m, mask=mask: m.get_image_features(pixels, mask), fast, stock)
    (found,) = vit_fast.explain(fast)
    assert found.name == "vision_model" and found.fast
    assert type(fast.vision_model) is vit_fast.SmolVLMVisionTransformer
    assert families.family_named("smolvlm_vision") is families.idefics.SMOLVLM


def test_other_ways_to_attend(monkeypatch):
    stock, fast = pair("idefics3")
    agree(fast, stock, WIDE, BOXES)
    fast.config._attn_implementation = "flash_attention_2"  # which is not installed
    with pytest.raises((ImportError, RuntimeError, TypeError, ValueError)):
        fast(WIDE, BOXES)
    assert "'flash_attention_2'" in reasons(fast)[0]
    fast.config._attn_implementation = "sdpa"
    agree(fast, stock, WIDE, BOXES)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS, "sdpa", other_masks)
    left(fast, stock, "not transformers' own", WIDE, BOXES)
