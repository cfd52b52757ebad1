"""ViT as an nn.Module: what it computes, what it leaves out, and its copies."""

import copy
import pickle
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTForImageClassification, ViTModel

from models import DEVICE, NORM, SPEC, hf_model, images, needs_triton
from vit_fast import Normalization, Ops, ViT, torch_ops, triton_ops
from vit_fast.families import bind


@pytest.fixture
def vit() -> ViT:
    """With a head; its token count is 17."""
    return ViT.from_hf(hf_model(ViTForImageClassification), NORM)


@pytest.fixture
def pixels() -> Tensor:
    return images(2, 3, 32, 32)


def counting(ops: Ops, rows: Counter) -> Ops:
    """`ops`, adding up the rows each operation is given; a linear's by its output features."""

    def linear(x, weight, *args, **kwargs):
        rows[f"linear {weight.shape[0]}"] += x.shape[:-1].numel()
        return ops.linear(x, weight, *args, **kwargs)

    def layer_norm(x, *args):
        rows["layer_norm"] += x.shape[:-1].numel()
        return ops.layer_norm(x, *args)

    def attention(q, *args):
        rows["queries"] += q.shape[:-2].numel()
        return ops.attention(q, *args)

    return replace(ops, linear=linear, layer_norm=layer_norm, attention=attention)


def test_parameter_names_are_timms():
    blocks = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    modules = [f"blocks.{i}.{name}" for i in range(2) for name in blocks]
    modules += ["patch_embed.proj", "norm", "head", "pooler"]
    names = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    assert set(ViT(SPEC).state_dict()) == {"cls_token", "pos_embed"} | names


def test_a_model_made_from_a_spec_runs(pixels):
    vit = ViT(SPEC)
    assert vit(pixels).shape == (2, SPEC.tokens(), SPEC.dim) == (2, 17, 64)
    assert vit(pixels).isfinite().all()


def test_features_are_what_was_asked_for(vit, pixels):
    with torch.inference_mode():
        full = vit.features(pixels, pooled=True, hidden_states=True, logits=True)
        assert torch.equal(full.tokens, vit(pixels))
        assert torch.equal(full.pooled, full.tokens[:, 0])
        assert len(full.hidden_states) == 3
        torch.testing.assert_close(full.tokens, vit.norm(full.hidden_states[-1], torch_ops()))
        assert torch.equal(full.logits, vit.head(full.pooled))
        alone = vit.features(pixels)
        assert (alone.pooled, alone.hidden_states, alone.logits) == (None, None, None)
        states = vit.features(pixels, tokens=False, hidden_states=True)
        assert states.tokens is None
        assert all(torch.equal(a, b) for a, b in zip(states.hidden_states, full.hidden_states))


@pytest.mark.parametrize("cls", [ViTModel, ViTForImageClassification])
def test_class_token_alone_is_exact(cls, pixels):
    vit = ViT.from_hf(hf_model(cls).double())
    logits = vit.head is not None
    with torch.inference_mode():
        full = vit.features(pixels.double(), pooled=True, logits=logits)
        less = vit.features(pixels.double(), tokens=False, pooled=True, logits=logits)
    torch.testing.assert_close(less.pooled, full.pooled, rtol=0, atol=1e-13)
    if logits:
        torch.testing.assert_close(less.logits, full.logits, rtol=0, atol=1e-13)


def test_class_token_alone_leaves_rows_out(vit, pixels):
    """B 2, N 17, 2 blocks, D 64, MLP 96. The last block needs k and v of all rows, else one an image."""

    def rows(**asked) -> Counter:
        counted = Counter()
        vit.ops = counting(torch_ops(), counted)
        with torch.inference_mode():
            vit.features(pixels, **asked)
        return counted

    B, N = 2, 17
    whole = {"linear 192": 2, "linear 64": 4, "linear 96": 2, "layer_norm": 5, "queries": 2}
    whole = {name: calls * B * N for name, calls in whole.items()}
    assert rows() == rows(hidden_states=True) == rows(logits=True) == whole

    less = {
        "linear 192": B * N,  # qkv of the first block
        "linear 128": B * N,  # k and v of the last
        "linear 64": 2 * B * N + 3 * B,  # proj and fc2; q, proj and fc2
        "linear 96": B * N + B,  # fc1
        "layer_norm": 3 * B * N
        + 2 * B,  # three before the last block's keys; norm2 and the final norm
        "queries": B * N + B,
    }
    assert rows(tokens=False, pooled=True) == rows(tokens=False, logits=True) == less
    assert rows(tokens=False, hidden_states=True, pooled=True)["layer_norm"] == 4 * B * N + B
    assert rows(tokens=False, hidden_states=True)["layer_norm"] == 4 * B * N


def test_results_belong_to_the_caller(vit, pixels):
    with torch.inference_mode():
        first = vit.features(pixels, hidden_states=True)
        kept = first.tokens.clone()
        again = vit(pixels)
        for t in (first.tokens, *first.hidden_states, again):
            t.fill_(float("nan"))
        assert torch.equal(vit(pixels), kept)


def test_batch_of_none(vit):
    empty = images(0, 3, 32, 32)
    with torch.inference_mode():
        for batch in (empty, empty.to(torch.uint8)):
            f = vit.features(batch, pooled=True, logits=True)
            assert (f.tokens.shape, f.logits.shape) == ((0, 17, 64), (0, 5))
            assert vit.features(batch, tokens=False, logits=True).logits.shape == (0, 5)


def test_nonfinite_pixels_pass_through_as_in_transformers():
    hf = hf_model(ViTModel)
    vit = ViT.from_hf(hf)
    for value in (float("nan"), float("inf"), -float("inf")):
        pixels = images(3, 3, 32, 32)
        pixels[1, 0, 3, 20] = value
        with torch.inference_mode():
            y, expected = vit(pixels), hf(pixels).last_hidden_state
        assert not expected.isfinite().all() and expected[[0, 2]].isfinite().all()
        torch.testing.assert_close(y, expected, rtol=0, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_from_hf_makes_parameters_of_its_own(mode):
    hf = hf_model(ViTModel).train()
    with mode():
        vit = ViT.from_hf(hf)
    assert not vit.training
    assert all(p.requires_grad and p.is_leaf and not p.is_inference() for p in vit.parameters())
    theirs = {p.data_ptr() for p in hf.parameters()}
    assert theirs.isdisjoint(p.data_ptr() for p in vit.parameters())


def test_can_read_the_parameters_of_another_module(pixels):
    """Built on no memory, then pointed at live tensors: nothing is copied, and a change there is seen."""
    hf = hf_model(ViTModel)
    spec, sources = bind(hf)
    with torch.device("meta"):
        vit = ViT(spec)
    for name, parts in sources.items():
        owner, _, leaf = name.rpartition(".")
        live = parts[0] if len(parts) == 1 else nn.Parameter(torch.cat(parts))
        setattr(vit.get_submodule(owner), leaf, live)
    assert vit.blocks[1].mlp.fc1.weight is hf.layers[1].mlp.fc1.weight
    with torch.inference_mode():
        before = vit(pixels)
        torch.testing.assert_close(before, hf(pixels).last_hidden_state, rtol=0, atol=2e-5)
    with torch.no_grad():
        hf.embeddings.cls_token.mul_(-1)
    with torch.inference_mode():
        torch.testing.assert_close(vit(pixels), hf(pixels).last_hidden_state, rtol=0, atol=2e-5)
        assert not torch.allclose(vit(pixels), before, atol=1e-2)


def run(vit: ViT, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        return vit(pixels)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_equal_and_independent(vit, copied):
    """After calls that derived positions and folded weights."""
    pixels = images(2, 3, 40, 48, dtype=torch.uint8)
    expected = run(vit, pixels)
    twin = copied(vit)
    assert torch.equal(run(twin, pixels), expected)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.1)
    assert not torch.allclose(run(twin, pixels), expected, atol=1e-2)
    assert torch.equal(run(vit, pixels), expected)


def test_state_dict_round_trip(vit):
    pixels = images(2, 3, 40, 48, dtype=torch.uint8)
    other = ViT(vit.spec, vit.normalization)
    assert not torch.allclose(run(other, pixels), run(vit, pixels), atol=1e-2)
    other.load_state_dict(vit.state_dict())
    assert torch.equal(run(other, pixels), run(vit, pixels))


def test_copies_that_do_not_fit(vit):
    sources = {name: (p,) for name, p in vit.state_dict().items()}
    assert run(ViT.copying(vit.spec, sources, None), images(2, 3, 32, 32)).shape == (2, 17, 64)
    for name, parts in (
        ("norm.bias", ()),
        ("norm.bias", (torch.ones(3),)),
        ("more", sources["norm.bias"]),
    ):
        with pytest.raises(ValueError, match=f"^{name} is .* in the model, expected"):
            ViT.copying(vit.spec, sources | {name: parts}, None)


def test_moved_to_another_dtype(vit):
    pixels = images(2, 3, 40, 48, dtype=torch.uint8)
    expected = run(vit, pixels)
    low = run(vit.to(torch.bfloat16), pixels)
    assert low.dtype == vit.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0, atol=0.1)
    assert run(vit.to(torch.float64), pixels).dtype == torch.float64


def test_other_normalization_values(vit):
    pixels = images(2, 3, 32, 32, dtype=torch.uint8)
    before = run(vit, pixels)
    vit.normalization = Normalization(1 / 255, (0.5,) * 3, (0.5,) * 3)
    after = run(vit, pixels)
    assert torch.equal(after, run(copy.deepcopy(vit), pixels))
    assert not torch.allclose(after, before, atol=1e-2)


def test_sizes_in_turn(vit):
    sizes = [(32, 32), (24, 40), (40, 24), (24, 40), (8, 8), (32, 32)]
    for size in sizes:
        pixels = images(1, 3, *size)
        assert torch.equal(run(vit, pixels), run(copy.deepcopy(vit), pixels))


@needs_triton
@pytest.mark.skipif(DEVICE != "cpu", reason="counts what Triton's interpreter starts")
def test_launches(vit, pixels, monkeypatch):
    """1 for the patches, 7 a block, 1 for the final norm; q apart from k and v where it is one row."""
    from triton.runtime.interpreter import GridExecutor

    started = Counter()
    run = GridExecutor.__call__

    def counted(self, *args, **kwargs):
        started["launches"] += 1
        return run(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", counted)
    vit.ops = triton_ops()
    with torch.inference_mode():
        vit(pixels)
        assert started["launches"] == 1 + 7 * vit.spec.depth + 1
        started.clear()
        vit.features(pixels, tokens=False, logits=True)
        assert started["launches"] == 1 + 7 * vit.spec.depth + 1 + 1
