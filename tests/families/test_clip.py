"""CLIP's vision encoder and the models around it, in every form that transformers' callers ask for."""

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from transformers.utils import output_capturing

import vit_fast
from accuracy import assert_as_accurate
from cases import CASES, TEXT, TOKENS
from models import TINY, images, in_float64
from towers import pair as twins_of
from twins import PIXELS, assert_fast, assert_same, assert_stock, reason, reasons
from vit_fast import ViT

NEW = hasattr(output_capturing, "resolve_hidden_states_indices")  # transformers >= 5.2x
HOLDERS = ("clip projection", "clip classifier", "clip in two")


@pytest.fixture
def pair():
    return twins_of("clip")


# what is returned


@pytest.mark.parametrize(
    "form",
    [
        {},
        *(dict(output_hidden_states=asked) for asked in (True, False, None, 0, 1, -1, -2, 7)),
        *(dict(return_dict=asked) for asked in (True, False, None, 0)),
        dict(return_dict=False, output_hidden_states=True),
        dict(output_attentions=False),
        dict(interpolate_pos_encoding=True),
        dict(attention_mask=None),
    ],
    ids=str,
)
def test_clip_forms(form):
    stock, fast = twins_of("clip")
    assert_fast(fast, stock, PIXELS, **form)
    assert_fast(fast, stock, pixel_values=PIXELS, **form)


@pytest.mark.parametrize("asked", [[-2], [0, 2], (1, -1), []], ids=str)
def test_clip_hidden_states_by_number(pair, asked):
    """What select_hidden_states of transformers 5.23 passes on for a VLM; earlier ones have their own reading."""
    stock, fast = pair
    if NEW or not asked:
        assert_fast(fast, stock, PIXELS, output_hidden_states=asked)
    else:
        assert_stock(fast, stock, "output_hidden_states", PIXELS, output_hidden_states=asked)


def test_what_llava_takes(pair):
    stock, fast = pair
    with torch.inference_mode():
        theirs, ours = (m(PIXELS, output_hidden_states=True) for m in pair)
        exact = in_float64(stock)(PIXELS.double(), output_hidden_states=True)
    assert len(ours.hidden_states) == 3
    for layer in (0, -1, -2):
        states = [x.hidden_states[layer][:, 1:] for x in (ours, exact, theirs)]
        assert_as_accurate(*states)
    # the last one is not normalized, and what is pooled is
    assert torch.equal(ours.hidden_states[-1], ours.last_hidden_state)
    normed = fast.post_layernorm(ours.last_hidden_state[:, 0])
    torch.testing.assert_close(ours.pooler_output, normed, rtol=0, atol=2e-5)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("patch, heads", [(14, 2), (16, 1), (32, 4)])
def test_clip_activations_and_sizes(act, patch, heads):
    config = {"patch_size": patch, "image_size": 3 * patch, "hidden_act": act}
    stock, fast = twins_of("clip", **config, num_attention_heads=heads)
    assert_fast(fast, stock, images(1, 3, 3 * patch, 3 * patch))


@pytest.mark.parametrize("head_dim", [64, 80, 88, 104])
def test_clip_head_dims(head_dim):
    config = {"hidden_size": 2 * head_dim, "num_hidden_layers": 1}
    stock, fast = twins_of("clip", **config)
    assert_fast(fast, stock, PIXELS)


@pytest.mark.parametrize("size", [(64, 64), (40, 72), (35, 50), (32, 33), (16, 64)], ids=str)
def test_clip_other_sizes(pair, size):
    stock, fast = pair
    pixels = images(2, 3, *size)
    assert_fast(fast, stock, pixels, interpolate_pos_encoding=True)
    for model in pair:
        with pytest.raises(ValueError, match="doesn't match model"):
            model(pixels)
    assert "for a model of 32 x 32" in reason(fast)


def test_clip_one_channel():
    stock, fast = twins_of("clip", num_channels=1, num_hidden_layers=1)
    assert_fast(fast, stock, images(2, 1, 32, 32))


# models that hold one


def features(model: nn.Module, **asked) -> torch.Tensor:
    return model.get_image_features(PIXELS, **asked)


@pytest.mark.parametrize("asked", [{}, {"output_hidden_states": True}, {"return_dict": False}])
def test_clip_with_text(asked):
    stock, fast = twins_of("clip in two")
    asked_of_all = {"input_ids": TOKENS, "pixel_values": PIXELS, **asked}
    with torch.inference_mode():
        theirs, ours = stock(**asked_of_all), fast(**asked_of_all)
        assert_same(ours, theirs, 2e-5)
        assert_same(features(fast, **asked), features(stock, **asked), 2e-5)
    if "return_dict" not in asked:
        assert ours.logits_per_image.shape == (2, 3)
    (found,) = vit_fast.explain(fast)
    assert (found.name, found.fast_calls, found.other_calls) == ("vision_model", 2, 0)


@pytest.mark.parametrize("name", HOLDERS)
def test_models_around_clip_are_stock(name, tmp_path):
    """Their class, their files; the encoder inside is the one that is accelerated."""
    stock, fast = twins_of(name)
    assert type(fast) is type(stock)
    assert [e.name for e in vit_fast.explain(fast)] == ["vision_model"]
    for model, folder in ((stock, "stock"), (fast, "fast")):
        model.save_pretrained(tmp_path / folder)
    files = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("stock", "fast")]
    assert files[0] == files[1]
    again = getattr(vit_fast, type(stock).__name__).from_pretrained(tmp_path / "fast").eval()
    assert type(again) is type(stock)
    with torch.inference_mode():
        assert_same(
            again(**CASES[name].inputs("native")), stock(**CASES[name].inputs("native")), 2e-5
        )
    assert not reasons(again)
    vit_fast.restore(fast)
    assert type(fast.vision_model) is CLIPVisionModel


@pytest.mark.parametrize("name", ("clip", *HOLDERS))
def test_clip_into_the_bare_runtime(name, tmp_path):
    """ViT of each class, and of its folder: tokens, pooled, and what its head makes of them."""
    stock = CASES[name].model()
    stock.save_pretrained(tmp_path)
    inputs = CASES[name].inputs("native")
    with torch.inference_mode():
        theirs = stock(**inputs)
        encoder = stock if name == "clip" else stock.vision_model
        whole = encoder(PIXELS)
        head = {
            CLIPVisionModel: lambda: None,
            CLIPVisionModelWithProjection: lambda: theirs.image_embeds,
            CLIPModel: lambda: stock.get_image_features(PIXELS).pooler_output,
            CLIPForImageClassification: lambda: theirs.logits,
        }[type(stock)]()
        for vit in (ViT.from_hf(stock), ViT.from_pretrained(tmp_path)):
            found = vit.features(inputs["pixel_values"], pooled=True, logits=head is not None)
            torch.testing.assert_close(found.tokens, whole.last_hidden_state, rtol=0, atol=2e-5)
            torch.testing.assert_close(found.pooled, whole.pooler_output, rtol=0, atol=2e-5)
            assert (vit.head is None) == (head is None)
            if head is not None:
                torch.testing.assert_close(found.logits, head, rtol=0, atol=2e-5)
                alone = vit.features(inputs["pixel_values"], tokens=False, logits=True)
                torch.testing.assert_close(alone.logits, head, rtol=0, atol=2e-5)
            assert (vit.head is None or vit.head.bias is None) == ("classifier" not in name)


def test_a_clip_file_of_old(tmp_path):
    """Before transformers 5 the keys began with vision_model, and the position ids were saved."""
    from safetensors.torch import load_file, save_file

    stock = CASES["clip"].model()
    stock.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    now = {key.removeprefix("vision_model."): t for key, t in load_file(file).items()}
    old = {f"vision_model.{key}": t for key, t in now.items()}
    old["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(old, file, metadata={"format": "pt"})
    with torch.inference_mode():
        expected = stock(PIXELS).last_hidden_state
        loaded = ViT.from_pretrained(tmp_path)(PIXELS)
        fast = vit_fast.CLIPVisionModel.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded, expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(fast(PIXELS).last_hidden_state, expected, rtol=0, atol=2e-5)
    assert reason(fast) == ""


@pytest.mark.parametrize("name", ["AltCLIP", "ChineseCLIP", "MetaClip2", "XCLIP", "CLIPSeg"])
def test_others_that_are_called_clip(name):
    """They have classes of their own, and explain names them."""
    vision = {k: v for k, v in TINY.items() if k != "num_labels"}
    if name == "XCLIP":
        vision |= dict(mit_hidden_size=32, mit_num_attention_heads=2, mit_intermediate_size=48)
    cls = getattr(transformers, f"{name}Model")
    model = cls(cls.config_class(text_config=TEXT, vision_config=vision)).eval()
    with pytest.warns(UserWarning, match="found nothing to do"):
        vit_fast.accelerate(model)
    (found,) = vit_fast.explain(model)
    assert found.name == "vision_model"
    assert "not a supported encoder" in found.reason
