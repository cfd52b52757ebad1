"""SigLIP 2 (NaFlex) beyond the matrix: images of several sizes in a batch, masks, and what is left to transformers."""

import json

import pytest
import torch
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

import vit_fast
from accuracy import assert_as_accurate
from cases import CASES, TOKENS, double, naflex
from models import DEVICE, NORM, images, in_float64, needs_triton
from towers import GRIDS, PHOTOGRAPHS, STATES, agree, agree_in, pair, several, states_agree, tower
from twins import reasons
from vit_fast import ViT, state, triton_ops, weights
from vit_fast.families import family_of
from vit_fast.positions import resize_positions
from vit_fast.state import state_of

BATCH = several()
ORDER = ("pixel_values", "spatial_shapes", "pixel_attention_mask")  # of ViT.patches


@pytest.fixture(scope="module", params=["siglip2", "siglip2 classifier"])
def either(request):
    return pair(request.param)


def judged(ours, theirs, reference) -> None:
    for key in theirs:
        assert_as_accurate(ours[key], reference[key], theirs[key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["siglip2", "siglip2 classifier"])
def test_images_of_several_sizes(name, dtype):
    """Padded rows of last_hidden_state too; and each image as it is alone."""
    stock, fast = pair(name, dtype)
    batch = several(dtype=dtype)
    with torch.no_grad():
        ours, theirs = fast(**batch), stock(**batch)
        judged(ours, theirs, in_float64(stock)(**double(batch)))
        assert reasons(fast) == []
        if dtype == torch.float32:
            for i, (h, w) in enumerate(GRIDS):
                alone = fast(**naflex(images(1, 3, 8 * h, 8 * w, seed=i)))
                key = "logits" if name == "siglip2 classifier" else "pooler_output"
                torch.testing.assert_close(ours[key][i : i + 1], alone[key], rtol=0, atol=2e-5)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_on_the_kernels(dtype, monkeypatch):
    monkeypatch.setattr(state, "choose_ops", lambda *args: (triton_ops(), "in a test"))
    stock, fast = pair("siglip2", dtype)
    batch = {k: v.to(DEVICE) for k, v in several(GRIDS[1:4], 13, dtype).items()}
    stock, fast = stock.to(DEVICE), fast.to(DEVICE)
    with torch.no_grad():
        ours, theirs = fast(**batch), stock(**batch)
        judged(ours, theirs, in_float64(stock)(**double(batch)))
    assert reasons(fast) == []


@pytest.mark.parametrize("asked", STATES, ids=str)
def test_hidden_states(either, asked):
    states_agree(*either[::-1], asked, **BATCH)


@pytest.mark.parametrize(
    "call",
    [
        dict(return_dict=False),
        dict(return_dict=False, output_hidden_states=True),
        dict(return_dict=None),
        dict(output_attentions=False),
    ],
    ids=str,
)
def test_forms(either, call):
    stock, fast = either
    agree(fast, stock, **BATCH, **call)
    agree(fast, stock, *BATCH.values(), **call)


def test_loss():
    stock, fast = pair("siglip2 classifier")
    assert agree(fast, stock, **BATCH, labels=torch.tensor([0, 1, 2, 3, 4])).loss > 0


def test_the_text_tower_is_transformers_own():
    stock, fast = pair("siglip2 in two")
    agree_in(lambda m: m.get_image_features(**BATCH), fast, stock)
    out = agree(fast, stock, TOKENS, **BATCH)
    assert out.logits_per_image.shape == (5, 3)
    assert not tower(fast)._forward_hooks


@pytest.mark.parametrize(
    "mask",
    ["none", "bool", "int64", "float", "any number", "holes", "left-padded", "all", "first row"],
)
def test_masks(either, mask):
    """Which patches count is the mask's to say, whatever the shapes are."""
    stock, fast = either
    given = BATCH["pixel_attention_mask"].clone()
    draw = torch.Generator().manual_seed(3)
    made = {
        "none": lambda: None,
        "bool": lambda: given.bool(),
        "int64": lambda: given.long(),
        "float": lambda: given.float(),
        "any number": lambda: given * torch.randint(1, 9, given.shape, generator=draw),
        "holes": lambda: (torch.rand(given.shape, generator=draw) < 0.5).long().index_fill_(1, torch.tensor([2]), 1),
        "left-padded": lambda: given.flip(1),
        "all": lambda: torch.ones_like(given),
        "first row": lambda: torch.eye(5, 17, dtype=torch.int32),
    }[mask]()  # fmt: skip
    agree(fast, stock, **{**BATCH, "pixel_attention_mask": made})


def test_what_padding_holds_is_of_no_effect():
    _, fast = pair("siglip2")
    other = {**BATCH, "pixel_values": BATCH["pixel_values"].clone()}
    out = BATCH["pixel_attention_mask"] == 0
    other["pixel_values"][out] = 100.0
    with torch.no_grad():
        a, b = fast(**BATCH), fast(**other)
    assert torch.equal(a.pooler_output, b.pooler_output)
    assert torch.equal(a.last_hidden_state[~out], b.last_hidden_state[~out])
    assert not torch.equal(a.last_hidden_state[out], b.last_hidden_state[out])


def test_a_model_in_float64():
    """On a CPU transformers rounds the table of positions to fp32, on its own grid too."""
    stock, fast = pair("siglip2", torch.float64)
    for model in (stock, fast):
        draw = torch.Generator().manual_seed(0)
        table = model.embeddings.position_embedding.weight
        table.copy_(torch.randn(table.shape, dtype=torch.float64, generator=draw))
    batch = several(dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = fast(**batch), stock(**batch)
    assert reasons(fast) == []
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_positions_on_a_gpu_are_resized_in_their_own_dtype(dtype, monkeypatch):
    """What a table on a GPU is interpolated in; here the interpolation is looked at, not done."""
    seen = []

    def interpolate(table, size, **how):
        seen.append((table.dtype, how["antialias"]))
        return table.new_empty(*table.shape[:2], *size)

    monkeypatch.setattr(torch.nn.functional, "interpolate", interpolate)
    for device in ("cpu", "meta"):
        table = torch.empty(16, 8, dtype=dtype, device=device)
        assert resize_positions(table, (4, 4), (3, 5), "bilinear antialias").dtype == dtype
    assert seen == [(torch.float32, True), (dtype, True)]


def test_more_grids_than_are_kept():
    stock, fast = pair("siglip2")
    grids = [(h, w) for h in range(1, 7) for w in range(1, 7)]
    assert len(grids) > weights.SIZES
    agree(fast, stock, **several(grids, 36))
    agree(fast, stock, **several(grids[::-1], 37))
    kept = state_of(fast).bound.engine._derived._kept
    assert sum(isinstance(key, tuple) for key in kept) == weights.SIZES


@pytest.mark.parametrize(
    "name",
    [
        "head.probe",
        "head.attention.in_proj_weight",
        "head.attention.in_proj_bias",
        "embeddings.position_embedding.weight",
        "embeddings.patch_embedding.weight",
        "encoder.layers.1.mlp.fc2.weight",
    ],
)
def test_written_in_place(name):
    stock, fast = pair("siglip2")
    before = agree(fast, stock, **BATCH)
    for model in (stock, fast):
        p = model.get_parameter(name)
        p.mul_(1.5).add_(0.1)
    after = agree(fast, stock, **BATCH)
    assert not torch.allclose(before.pooler_output, after.pooler_output, atol=1e-3)


def test_photographs():
    """A cat and a rocket, as the processor of NaFlex checkpoints cuts them."""
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=37)
    stock, fast = pair("siglip2")
    cat, rocket = PHOTOGRAPHS
    inputs = processor([cat, rocket.rotate(90, expand=True)], return_tensors="pt")
    assert len({tuple(s) for s in inputs["spatial_shapes"].tolist()}) == 2
    assert not inputs["pixel_attention_mask"].all()
    agree(fast, stock, **inputs)
    one = processor(rocket, return_tensors="pt")
    agree(fast, stock, **one)
    stock, fast = pair("siglip2 classifier")
    agree(fast, stock, **inputs)


def test_patches_into_the_bare_runtime():
    """patches(), as they are and as bytes of whole images, which it cuts itself."""
    case = CASES["siglip2 classifier"]
    stock = case.model()
    vit = ViT.from_hf(stock, NORM)
    with torch.no_grad():
        patches = vit.patches(*(BATCH[name] for name in ORDER))
        found = vit.features(patches, pooled=True, hidden_states=True, logits=True)
        theirs = stock.vision_model(**BATCH, output_hidden_states=True)
        logits = stock(**BATCH).logits
        assert torch.equal(vit(patches), found.tokens)
    close = dict(rtol=0, atol=2e-5)
    torch.testing.assert_close(found.tokens, theirs.last_hidden_state, **close)
    torch.testing.assert_close(found.pooled, theirs.pooler_output, **close)
    torch.testing.assert_close(found.hidden_states, theirs.hidden_states, **close)
    torch.testing.assert_close(found.logits, logits, **close)
    # shapes as a list, no mask
    with torch.no_grad():
        all_count = vit(vit.patches(BATCH["pixel_values"], GRIDS))
        expected = stock.vision_model(**{**BATCH, "pixel_attention_mask": None})
    torch.testing.assert_close(all_count, expected.last_hidden_state, **close)


def test_gradients_through_patches():
    """Of a model that is trained, positions included."""
    stock = CASES["siglip2"].model().requires_grad_(True)
    vit = ViT.from_hf(stock)
    with pytest.warns(UserWarning, match="a gradient is wanted"):
        vit.features(
            vit.patches(*(BATCH[name] for name in ORDER)), pooled=True
        ).pooled.sum().backward()
    stock(**BATCH).pooler_output.sum().backward()
    for ours, theirs in (
        (vit.pos_embed.grad[0], stock.embeddings.position_embedding.weight.grad),
        (vit.attn_pool.latent.grad, stock.head.probe.grad),
        (vit.patch_embed.proj.weight.grad, stock.embeddings.patch_embedding.weight.grad),
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("cls", ["Siglip2VisionModel", "Siglip2Model"])
def test_folders(cls, tmp_path):
    stock = next(c for c in CASES.values() if c.cls == cls).model()
    stock.save_pretrained(tmp_path)
    fields = Siglip2ImageProcessorPil(patch_size=8).to_dict()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    vit = ViT.from_pretrained(tmp_path)
    pixels = images(2, 3, 24, 40, dtype=torch.uint8)
    with torch.no_grad():
        ours = vit(pixels)
        theirs = tower(stock)(**naflex((pixels.float() / 255 - 0.5) / 0.5)).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    loaded = getattr(vit_fast, cls).from_pretrained(tmp_path).eval().requires_grad_(False)
    loaded.set_attn_implementation("sdpa")
    agree(tower(loaded), tower(stock), **BATCH)


def test_warmup_takes_images():
    _, fast = pair("siglip2", torch.float32)
    assert vit_fast.warmup(fast, [(2, 3, 32, 24)]) is fast
    assert reasons(fast) == [] and state_of(fast).fast_calls == 1
    pixels = images(2, 3, 32, 24)
    given = family_of(fast).given(fast, pixels)
    assert all(torch.equal(given[k], v) for k, v in naflex(pixels).items())
