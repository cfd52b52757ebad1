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
from towers import PHOTOGRAPHS, STATES, agree, agree_in, left, pair, states_agree, tower
from twins import PIXELS, reasons
from vit_fast import ViT
from vit_fast.state import state_of

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
    pixels = images(2, 3, 32, 32, dtype=torch.uint8)
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
            pixels = images(1, 3, *shape, dtype=dtype)
            ours, theirs = fast(pixels, **call), stock(pixels, **call)
            assert reasons(fast) == []
            reference = in_float64(stock)(pixels.double(), **call)
            for key in theirs:
                assert_as_accurate(ours[key], reference[key], theirs[key])


@torch.no_grad()
def put(module: nn.Module, **attributes: object) -> None:
    for name, value in attributes.items():
        setattr(module, name, value)


def frozen(module: nn.Module) -> nn.Module:
    return randomize(module).requires_grad_(False)


def row() -> nn.Parameter:
    return nn.Parameter(torch.ones(1, 1, 64), requires_grad=False)


def turned(embeddings: nn.Module) -> None:
    embeddings.position_ids = embeddings.position_ids.flip(1)


CHANGES = {
    "a hook on the head": (lambda m: m.head.register_forward_hook(lambda *a: a[2] * 2), "hooks"),
    "a hook on its attention": (
        lambda m: m.head.attention.register_forward_pre_hook(lambda *a: None),
        "Head.attention has forward hooks",
    ),
    "a hook on its out_proj": (
        lambda m: m.head.attention.out_proj.register_forward_hook(lambda *a: a[2] * 2),
        "out_proj has forward hooks",
    ),
    "a forward of its own": (
        lambda m: put(m.head.mlp, forward=lambda x: x),
        "a forward of its own",
    ),
    "another out_proj": (
        lambda m: put(m.head.attention, out_proj=frozen(nn.Linear(64, 64))),
        "expected exactly NonDynamicallyQuantizableLinear",
    ),
    "more heads": (lambda m: put(m.head.attention, num_heads=4), "'num_heads': 4"),
    "a zero key": (lambda m: put(m.head.attention, add_zero_attn=True), "'add_zero_attn': True"),
    "batch second": (lambda m: put(m.head.attention, batch_first=False), "'batch_first': False"),
    "no bias": (lambda m: put(m.head.attention, in_proj_bias=None), "head.attention has"),
    "a key's bias": (
        lambda m: put(m.head.attention, bias_k=row(), bias_v=row()),
        "no bias_k",
    ),
    "another attention": (
        lambda m: put(
            m.head,
            attention=randomize(nn.MultiheadAttention(64, 4, batch_first=True)).requires_grad_(
                False
            ),
        ),
        "'num_heads': 4",
    ),
    "another eps in the head": (lambda m: put(m.head.layernorm, eps=0.1), "head.layernorm has eps"),
    "another activation": (
        lambda m: put(m.head.mlp, activation_fn=nn.ReLU()),
        "activation_fn is torch",
    ),
    "no head any more": (lambda m: put(m, use_head=False), "use_head was changed"),
    "positions in another order": (lambda m: turned(m.embeddings), "position_ids are not"),
    "positions of unit length": (
        lambda m: put(m.embeddings.position_embedding, max_norm=0.5),
        "max_norm",
    ),
    "a patch that the config does not know": (
        lambda m: put(m.embeddings, patch_size=4),
        "embeddings.patch_size is 4",
    ),
    "another scale": (lambda m: put(m.encoder.layers[1].self_attn, scale=1.0), "scale 1.0"),
    "causal": (lambda m: put(m.encoder.layers[0].self_attn, is_causal=True), "is_causal True"),
    "a hook on the layers": (lambda m: m.encoder.register_forward_hook(lambda *a: None), "hooks"),
}


@pytest.mark.parametrize("called", [False, True], ids=["at once", "after a call"])
@pytest.mark.parametrize("what", CHANGES)
def test_left_to_transformers(what, called):
    change, why = CHANGES[what]
    stock, fast = pair("siglip")
    if called:
        agree(fast, stock, PIXELS)
    if what == "no head any more" and not called:
        change(stock), change(fast)
        agree(fast, stock, PIXELS)  # it was never seen with one
        return
    with torch.no_grad():
        change(stock), change(fast)
    left(fast, stock, why, PIXELS)


@pytest.mark.parametrize(
    "call, why",
    [
        (dict(pixel_values=images(2, 3, 40, 40)), "40 x 40 for a model of 32 x 32"),
        (dict(pixel_values=PIXELS[0]), "are not [B, C, H, W]"),
        (dict(pixel_values=PIXELS[:, :1]), "do not fit"),
        (dict(pixel_values=PIXELS[:0]), "do not fit"),
        (dict(pixel_values=PIXELS, output_attentions=True), "output_attentions"),
        (dict(pixel_values=PIXELS, attention_mask=torch.zeros(2, 1, 16, 16)), "attention_mask"),
        (dict(pixel_values=PIXELS, is_causal=False), "is_causal"),
        (dict(), "not a plain tensor"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_calls_left_to_transformers(call, why):
    stock, fast = pair("siglip")
    left(fast, stock, why, **call)


def test_dropout_of_the_head():
    stock, fast = pair("siglip")
    for model in (stock, fast):
        model.head.attention.dropout = 0.5
    agree(fast, stock, PIXELS)
    outputs = []
    for model in (stock.train(), fast.train()):
        torch.manual_seed(0)
        outputs.append(model(PIXELS).pooler_output)
    assert "MultiheadAttention drops out 0.5" in state_of(fast).last_reason
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    "name",
    [
        "head.probe",
        "head.attention.in_proj_weight",
        "head.attention.in_proj_bias",
        "head.attention.out_proj.weight",
        "head.layernorm.bias",
        "head.mlp.fc1.weight",
        "embeddings.position_embedding.weight",
        "embeddings.patch_embedding.bias",
    ],
)
def test_written_in_place_or_replaced(name):
    stock, fast = pair("siglip")
    other = images(2, 3, 40, 24)
    for step in range(3):
        before = agree(fast, stock, PIXELS)
        agree(fast, stock, other, interpolate_pos_encoding=True)
        path, _, leaf = name.rpartition(".")
        for model in (stock, fast):
            draw = torch.Generator().manual_seed(step)
            p = model.get_parameter(name)
            noise = 0.1 * torch.randn(p.shape, generator=draw)
            with torch.no_grad():
                if step == 1:
                    value = nn.Parameter(p + noise, requires_grad=False)
                    setattr(model.get_submodule(path), leaf, value)
                else:
                    p.add_(noise)
        after = agree(fast, stock, PIXELS)
        assert not torch.allclose(before.pooler_output, after.pooler_output, atol=1e-3)
        agree(fast, stock, other, interpolate_pos_encoding=True)


def test_steps_of_a_fused_optimizer_on_the_position_table():
    """They leave the tensor's version as it was."""
    stock, fast = pair("siglip")
    agree(fast, stock, images(2, 3, 40, 24), interpolate_pos_encoding=True)
    for model in (stock, fast):
        p = model.embeddings.position_embedding.weight.requires_grad_(True)
        p.grad = torch.ones_like(p)
        torch.optim.AdamW([p], lr=0.5, fused=True).step()
    agree(fast, stock, images(2, 3, 40, 24), interpolate_pos_encoding=True)


def test_positions_put_in_another_order_in_place():
    stock, fast = pair("siglip")
    agree(fast, stock, PIXELS)
    for model in (stock, fast):
        model.embeddings.position_ids.copy_(model.embeddings.position_ids.flip(1))
    left(fast, stock, "position_ids", PIXELS)
    for model in (stock, fast):
        model.embeddings.position_ids.data = model.embeddings.position_ids.flip(1)
    agree(fast, stock, PIXELS)


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
