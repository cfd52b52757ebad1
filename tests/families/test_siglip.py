"""SigLIP beyond the matrix: its pooling head, the models around it, and what is left to transformers."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipForImageClassification,
    SiglipModel,
    SiglipVisionModel,
    pipeline,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import vit_fast
from accuracy import assert_as_accurate
from cases import CASES, SIGLIP, TOKENS
from models import TINY, images, in_float64, randomize
from towers import PHOTOGRAPHS, STATES, agree, agree_in, pair, states_agree, tower
from twins import PIXELS, reasons
from vit_fast import ViT

PROCESSOR = SiglipImageProcessorPil(size={"height": 32, "width": 32})


@pytest.fixture(scope="module", params=["siglip", "siglip without head", "siglip classifier"])
def either(request):
    return pair(request.param)


@pytest.mark.parametrize("asked", STATES, ids=str)
def test_hidden_states(either, asked):
    states_agree(*either[::-1], asked, PIXELS)


@pytest.mark.parametrize(
    "call",
    [
        dict(return_dict=False),
        dict(return_dict=False, output_hidden_states=True),
        dict(return_dict=True),
        dict(return_dict=None),
        dict(output_attentions=False),
        dict(interpolate_pos_encoding=True),
        dict(interpolate_pos_encoding=None),
        dict(attention_mask=None),
    ],
    ids=str,
)
def test_forms(either, call):
    stock, fast = either
    agree(fast, stock, PIXELS, **call)
    agree(fast, stock, pixel_values=PIXELS, **call)


def test_positional_arguments():
    stock, fast = pair("siglip")
    agree(fast, stock, images(2, 3, 40, 24), True)
    stock, fast = pair("siglip classifier")
    assert agree(fast, stock, PIXELS, torch.tensor([1, 4]), False).loss > 0


@pytest.mark.parametrize("labels", [torch.tensor([1, 4]), torch.rand(2, 5)], ids=["one", "soft"])
def test_loss(labels):
    stock, fast = pair("siglip classifier")
    out = agree(fast, stock, PIXELS, labels=labels, output_hidden_states=True)
    assert out.loss > 0 and len(out.hidden_states) == 3


@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.uint8], ids=str)
def test_pixels_of_another_dtype(given):
    """They are converted, bytes too, which nobody normalizes."""
    stock, fast = pair("siglip", torch.bfloat16)
    pixels = images(2, 3, 32, 32, dtype=given)
    with torch.no_grad():
        ours, theirs = fast(pixels), stock(pixels)
        reference = in_float64(stock)(pixels.bfloat16())
    assert reasons(fast) == []
    for key in theirs:
        assert_as_accurate(ours[key], reference[key], theirs[key])


def test_the_text_tower_is_transformers_own():
    stock, fast = pair("siglip in two")
    for form in (dict(), dict(return_dict=False), dict(output_hidden_states=True)):
        agree_in(lambda m, form=form: m.get_image_features(PIXELS, **form), fast, stock)
        agree(fast, stock, TOKENS, PIXELS, **form)
    other = images(2, 3, 40, 24)
    agree_in(lambda m: m.get_image_features(other, interpolate_pos_encoding=True), fast, stock)
    agree(fast, stock, TOKENS, PIXELS[:1].repeat(3, 1, 1, 1), return_loss=True)
    out = agree(fast, stock, TOKENS, PIXELS)
    assert out.logits_per_image.shape == (2, 3)
    (found,) = vit_fast.explain(fast)
    assert found.name == "vision_model" and type(fast) is SiglipModel


@pytest.mark.parametrize(
    "cls", ["SiglipVisionModel", "SiglipForImageClassification", "SiglipModel"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_folders(cls, dtype, tmp_path):
    """ViT.from_pretrained and the importable class: the named class is loaded, its bytes are normalized."""
    case = next(c for c in CASES.values() if c.cls == cls)
    stock = case.model(dtype)
    stock.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR.to_dict()))
    vit = ViT.from_pretrained(tmp_path)
    assert vit.dtype == dtype and vit.normalization.mean == (0.5,) * 3
    pixels = images(8, 3, 32, 32, dtype=torch.uint8)
    normalized = (pixels.double() / 255 - 0.5) / 0.5
    with torch.no_grad():
        found = vit.features(pixels, pooled=True, logits=vit.head is not None)
        theirs = tower(stock)(normalized.to(dtype))
        reference = tower(in_float64(stock))(normalized)
    for ours, field in ((found.tokens, "last_hidden_state"), (found.pooled, "pooler_output")):
        assert_as_accurate(ours, reference[field], theirs[field])
    assert (found.logits is None) == (cls != "SiglipForImageClassification")
    loaded = getattr(vit_fast, cls).from_pretrained(tmp_path).eval().requires_grad_(False)
    loaded.set_attn_implementation("sdpa")
    agree(tower(loaded), tower(stock), images(2, 3, 32, 32, dtype=dtype))


def test_an_encoder_without_head_pools_the_mean():
    stock, fast = pair("siglip without head")
    assert agree(fast, stock, PIXELS).pooler_output is None
    with torch.no_grad():
        found = ViT.from_hf(stock).features(PIXELS, pooled=True)
        expected = stock(PIXELS).last_hidden_state.mean(1)
    torch.testing.assert_close(found.pooled, expected, rtol=0, atol=2e-5)


WIDE = {
    "so400m": dict(
        hidden_size=1152,
        num_attention_heads=16,
        intermediate_size=4304,
        num_hidden_layers=1,
        patch_size=14,
        image_size=48,  # as 384 is not, of patches of 14
    ),
    "giant": dict(hidden_size=192, intermediate_size=768),  # in its heads
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", WIDE)
def test_widths_of_checkpoints(size, dtype):
    stock, fast = pair("siglip", dtype, **WIDE[size])
    native = stock.config.image_size
    with torch.no_grad():
        for shape, call in (
            ((native, native), {}),
            ((56, 30), {"interpolate_pos_encoding": True}),
        ):
            pixels = images(4, 3, *shape, dtype=dtype)
            ours, theirs = fast(pixels, **call), stock(pixels, **call)
            assert reasons(fast) == []
            reference = in_float64(stock)(pixels.double(), **call)
            for key in theirs:
                assert_as_accurate(ours[key], reference[key], theirs[key])


def test_photographs_in_a_pipeline():
    """The processor's own pixels, and the scores of the classifier."""
    stock, fast = pair("siglip classifier")
    pixels = PROCESSOR(PHOTOGRAPHS, return_tensors="pt")["pixel_values"]
    agree(fast, stock, pixels)
    theirs, ours = (
        pipeline("image-classification", model=m, image_processor=PROCESSOR)(PHOTOGRAPHS)
        for m in (stock, fast)
    )
    assert reasons(fast) == []
    for a, b in zip(ours, theirs):
        assert [x["label"] for x in a] == [x["label"] for x in b]
        assert a[0]["score"] == pytest.approx(b[0]["score"], abs=1e-5)


def test_the_tower_of_paligemma():
    """AutoModel makes a SiglipVisionModel of its vision config, as in Gemma 3 and LLaVA-OneVision."""
    text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    vision = {**TINY, **SIGLIP, "vision_use_head": False, "projection_dim": 32}
    config = PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **vision},
        text_config={
            "model_type": "gemma",
            "intermediate_size": 48,
            "vocab_size": 99,
            "head_dim": 16,
            **text,
        },
        projection_dim=32,
        image_token_index=98,
    )
    stock = randomize(PaliGemmaForConditionalGeneration(config)).eval().requires_grad_(False)
    stock.set_attn_implementation("sdpa")
    fast = vit_fast.accelerate(copy.deepcopy(stock))
    agree_in(lambda m: m.get_image_features(PIXELS), fast, stock)
    (found,) = vit_fast.explain(fast)
    assert found.name.endswith("vision_tower") and found.fast
    tokens = torch.tensor([[98] * 16 + [5, 6, 7]] * 2)
    agree_in(lambda m: m(input_ids=tokens, pixel_values=PIXELS).logits, fast, stock)


def test_saved_and_loaded_by_transformers(tmp_path):
    stock, fast = pair("siglip in two")
    fast.save_pretrained(tmp_path)
    loaded = SiglipModel.from_pretrained(tmp_path)
    for (name, ours), theirs in zip(stock.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert SiglipVisionModel in vit_fast.families.siglip.FAMILY.forms
    assert issubclass(vit_fast.SiglipForImageClassification, SiglipForImageClassification)


def test_a_classifier_without_labels():
    stock, fast = pair("siglip classifier")
    stock.classifier, fast.classifier = nn.Identity(), nn.Identity()
    agree(fast, stock, PIXELS)
    assert ViT.from_hf(stock).head is None
