"""Vision towers in models of vision and language, and in pipelines: the same tokens and the same answers, fast."""

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    SiglipVisionModel,
    pipeline,
)

import vit_fast
from cases import CASES
from twins import reasons
from vlms import CAT, CROPPED, CUP, SQUARE, VLMS, pillow

LENGTH = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False)


def generate(model: nn.Module, asked: dict, **options) -> tuple[Tensor, Tensor]:
    """Tokens [B, T], and the logits [B, 8, V] of the new ones."""
    more = dict(return_dict_in_generate=True, output_logits=True)
    found = model.generate(**asked, **LENGTH, **more, **options)
    return found.sequences, torch.stack(found.logits, 1)


@pytest.mark.parametrize("name", VLMS)
def test_tower_gives_the_same_tokens(name):
    vlm = VLMS[name]
    model = vlm.model()
    asked = vlm.asked(model, CAT, CUP)
    tokens, logits = generate(model, asked)
    # the photographs are seen: the prompt is the same
    assert not torch.allclose(*logits[:, 0], atol=0.01)
    vit_fast.accelerate(model)
    ours, of_ours = generate(model, asked)
    assert torch.equal(ours, tokens)
    torch.testing.assert_close(of_ours, logits, rtol=0, atol=1e-4)
    (found,) = vit_fast.explain(model)
    assert (found.name, found.type, found.fast) == (vlm.tower, vlm.type, True), found
    assert (found.fast_calls, found.other_calls) == (1, 0)
    beams = model.generate(**asked, **LENGTH, num_beams=3)
    vit_fast.restore(model)
    assert vit_fast.explain(model)[0].reason == "not accelerated: call vit_fast.accelerate"
    assert all(map(torch.equal, generate(model, asked), (tokens, logits)))
    assert torch.equal(model.generate(**asked, **LENGTH, num_beams=3), beams)


@pytest.mark.parametrize("name", ["paligemma", "llava"])
def test_tower_of_a_folder(name, tmp_path):
    """Loaded by AutoModelForImageTextToText; what an accelerated one saves is what it loaded."""
    vlm = VLMS[name]
    stock = vlm.model()
    stock.save_pretrained(tmp_path / "stock")
    asked = vlm.asked(stock, CAT, CUP)
    fast = AutoModelForImageTextToText.from_pretrained(tmp_path / "stock").eval()
    assert type(fast) is type(stock)
    vit_fast.accelerate(fast).save_pretrained(tmp_path / "fast")
    assert torch.equal(fast.generate(**asked, **LENGTH), stock.generate(**asked, **LENGTH))
    assert not reasons(fast)
    files = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("stock", "fast")]
    assert files[0] == files[1]


@pytest.mark.parametrize("layer", [-1, -2, [0, -1], [-2, -1]], ids=str)
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_layers_that_llava_takes(layer, strategy):
    """transformers 5.23 tells the tower which ones, as an int or a list; earlier releases ask for all."""
    llava = VLMS["llava"]
    more = dict(vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    stock = replace(llava, config={**llava.config, **more}).model()
    fast = vit_fast.accelerate(copy.deepcopy(stock))
    pixels = llava.processor()([CAT], return_tensors="pt").pixel_values
    with torch.inference_mode():
        theirs, ours = (m.get_image_features(pixels).pooler_output for m in (stock, fast))
    assert not reasons(fast)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


WORDS = ["a", "photo", "of", ".", "the", "cat", "cup", "moon"]
CLIP = ("clip in two", lambda: pillow("clip", "CLIP", **CROPPED))
SIGLIP = ("siglip in two", lambda: pillow("siglip", "Siglip", size=SQUARE))


@pytest.mark.parametrize("whole", [True, False], ids=["the pipeline", "its model"])
@pytest.mark.parametrize("name, processor", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_tower_in_zero_shot_classification(name, processor, whole):
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(["<pad>", *WORDS])}, unk_token="<pad>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", model_max_length=64
    )
    # the pipeline pads SigLIP's texts to 64 tokens
    case = CASES[name]
    model = replace(case, text={**case.text, "max_position_embeddings": 64}).model()
    stock, fast = (
        pipeline(
            "zero-shot-image-classification",
            model=m,
            tokenizer=tokenizer,
            image_processor=processor(),
        )
        for m in (model, copy.deepcopy(model))
    )
    vit_fast.accelerate(fast if whole else fast.model)
    labels = ["cat", "cup", "moon"]
    answers = []
    for photograph in (CAT, CUP):
        theirs, ours = (p(photograph, candidate_labels=labels) for p in (stock, fast))
        assert [x["label"] for x in ours] == [x["label"] for x in theirs]
        assert [x["score"] for x in ours] == pytest.approx([x["score"] for x in theirs], abs=1e-5)
        answers.append(ours)
    assert answers[0] != answers[1]
    (found,) = vit_fast.explain(fast)
    assert (found.name, found.fast, found.other_calls) == ("model.vision_model", True, 0)
    vit_fast.restore(fast)
    assert type(fast.model.vision_model) in (CLIPVisionModel, SiglipVisionModel)


def test_tower_in_feature_extraction():
    model = CASES["clip"].model()
    stock, fast = (
        pipeline("image-feature-extraction", model=m, image_processor=CLIP[1]())
        for m in (model, copy.deepcopy(model))
    )
    vit_fast.accelerate(fast)
    for options in ({}, {"pool": True}):
        theirs, ours = (torch.tensor(p([CAT, CUP], **options)) for p in (stock, fast))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    (found,) = vit_fast.explain(fast)
    assert (found.name, found.fast_calls, found.other_calls) == ("model", 4, 0)
