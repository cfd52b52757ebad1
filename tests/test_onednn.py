"""cpu_ops(): oneDNN's linear layers against the definition in float64, and what they refuse."""

import copy
import pickle

import pytest
import torch
from transformers import ViTModel

from accuracy import assert_as_accurate
from models import SPEC, hf_model, images, needs_onednn
from tensors import f64, values
from vit_fast import ViT, cpu_ops, onednn, torch_ops
from vit_fast.onednn import onednn_linear, pack
from vit_fast.spec import ACTIVATIONS

pytestmark = needs_onednn

DEFINITION = torch_ops().linear


def case(kind="normal", M=37, K=96, N=72, dtype=torch.float32):
    x = values(kind, M, K).cpu()
    w, b, scale = (values("normal", *shape).cpu() for shape in ((N, K), (N,), (N,)))
    return [t.to(dtype) for t in (x, w / K**0.5, b, scale, values("normal", M, N).cpu())]


@pytest.mark.parametrize("dtype", onednn.DTYPES)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("scaled, added", [(False, False), (False, True), (True, True)])
def test_against_float64(dtype, activation, packed, scaled, added):
    x, w, b, scale, residual = case(dtype=dtype)
    scale, residual = scale if scaled else None, residual if added else None
    rest = (b, activation, scale, residual)
    y = onednn_linear(x, pack(w) if packed else w, *rest)
    ref = DEFINITION(*f64(x, w, b), activation, *f64(scale, residual))
    assert_as_accurate(y, ref, DEFINITION(x, w, *rest))


@pytest.mark.parametrize("dtype", onednn.DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("low, high", [(-6, -3), (-1e-3, 1e-3), (0, 9), (-40, -20)])
def test_activations_where_they_are_hard(dtype, activation, low, high):
    """Through the identity, so that nothing but the activation is judged."""
    eye = torch.eye(64, dtype=dtype)
    x = torch.empty(128, 64).uniform_(low, high).to(dtype)
    y = onednn_linear(x, pack(eye), None, activation)
    ref = DEFINITION(*f64(x, eye), None, activation)
    assert_as_accurate(y, ref, DEFINITION(x, eye, None, activation))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("strided", [lambda b: b[::2], lambda b: b[:1].expand(36)])
def test_strides_of_the_bias(packed, activation, strided):
    """Of which oneDNN knows nothing."""
    x, w, b, *_ = case(N=72)
    w, b = w[:36], strided(b)
    y = onednn_linear(x, pack(w) if packed else w, b, activation)
    ref = DEFINITION(*f64(x, w, b), activation)
    assert_as_accurate(y, ref, DEFINITION(x, w, b, activation))


@pytest.mark.parametrize("kind", ["normal", "one channel 1000x", "constant rows"])
@pytest.mark.parametrize("M, K, N", [(1, 1, 1), (1, 768, 300), (7, 33, 65), (197, 64, 4304)])
def test_odd_sizes(kind, M, K, N):
    x, w, b, *_ = case(kind, M, K, N)
    y = onednn_linear(x, pack(w), b)
    assert_as_accurate(y, DEFINITION(*f64(x, w, b)), DEFINITION(x, w, b))


@pytest.mark.parametrize(
    "layout", ["class token", "transposed", "every other", "four axes", "empty", "one axis"]
)
def test_layouts(layout):
    w = torch.randn(24, 16)
    x = {
        "class token": lambda: torch.randn(3, 5, 16)[:, :1],
        "transposed": lambda: torch.randn(16, 5).t(),
        "every other": lambda: torch.randn(5, 32)[:, ::2],
        "four axes": lambda: torch.randn(2, 3, 4, 16),
        "empty": lambda: torch.randn(2, 0, 16),
        "one axis": lambda: torch.randn(16),
    }[layout]()
    y = onednn_linear(x, pack(w), None, "gelu")
    assert_as_accurate(y, DEFINITION(*f64(x, w), None, "gelu"), DEFINITION(x, w, None, "gelu"))
    assert y.is_contiguous()


def test_weights_of_another_layout_are_packed_right():
    w = torch.randn(16, 24).t()
    x = torch.randn(5, 16)
    torch.testing.assert_close(onednn_linear(x, pack(w)), x @ w.t())


def test_neither_input_nor_residual_is_written_to():
    x, w, b, scale, residual = case()
    before = [t.clone() for t in (x, residual)]
    y = onednn_linear(x, pack(w), b, "quick_gelu", scale, residual)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])
    assert y.data_ptr() not in (x.data_ptr(), residual.data_ptr())


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.randn(5, 15)), r"x is \(5, 15\), weight \(24, 16\)"),
        (dict(x=torch.randn(5, 16, dtype=torch.bfloat16)), "weight is torch.float32"),
        (dict(bias=torch.randn(23)), r"bias is \(23,\), expected \(24,\)"),
        (dict(residual=torch.randn(1, 24)), r"residual is \(1, 24\), expected \(5, 24\)"),
        (dict(scale=torch.randn(24).double()), "scale is torch.float64"),
        (dict(activation="relu"), "'relu' is not known"),
        (dict(x=torch.randn(5, 16).half()), "x is torch.float16, expected torch.float32"),
    ],
)
def test_refusals(change, message):
    arguments = dict(x=torch.randn(5, 16), weight=pack(torch.randn(24, 16))) | change
    with pytest.raises(ValueError, match=message):
        onednn_linear(**arguments)


def test_a_gradient_is_an_error():
    x = torch.randn(5, 16, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"vit_fast\.onednn_linear has no gradient"):
        onednn_linear(x, pack(torch.randn(24, 16))).sum().backward()


def test_opcheck():
    x, w, b, scale, residual = case()
    torch.library.opcheck(onednn_linear, (x, w, b, "gelu", scale, residual))


def test_reasons(monkeypatch):
    assert "torch.float16" in onednn.why_not(torch.float16)
    assert onednn.why_not(torch.bfloat16) == ""
    with torch.backends.mkldnn.flags(enabled=False):
        assert "turned off" in onednn.why_not(torch.float32)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert "AVX2" in onednn.why_not(torch.float32)


def test_a_model_packs_its_weights_once_and_copies_pack_their_own():
    vit = ViT.from_hf(hf_model(ViTModel).requires_grad_(False))
    pixels = images(2, 3, 32, 32)
    with torch.inference_mode():
        y = vit(pixels)
        packed = vit.blocks[0].mlp.fc1._derived._kept
        first = [kept.result for kept in packed.values()]
        vit(pixels)
        assert [kept.result for kept in packed.values()] == first
        assert first[0].is_mkldnn
        # both products of the MLP, the projection and qkv, of two blocks; class token and positions beside them
        weights = sum(p.nbytes for n, p in vit.named_parameters() if p.dim() == 2 and "blocks" in n)
        assert vit.derived_nbytes() == weights + vit.cls_token.nbytes
        for copied in (copy.deepcopy(vit), pickle.loads(pickle.dumps(vit))):
            assert copied.derived_nbytes() == 0
            assert torch.equal(copied(pixels), y)
        assert "packed" not in str(vit.state_dict().keys())


def test_a_changed_weight_is_packed_anew():
    vit = ViT.from_hf(hf_model(ViTModel).requires_grad_(False))
    pixels = images(1, 3, 32, 32)
    weight = vit.blocks[1].mlp.fc2.weight
    with torch.inference_mode():
        vit(pixels)
    weight.mul_(-1)
    with torch.inference_mode():
        changed = vit(pixels)
        vit.ops = torch_ops()
        torch.testing.assert_close(changed, vit(pixels), rtol=0, atol=2e-5)
        # a write that cannot be seen, and what to do about it
        vit.ops = None
        weight.data.mul_(-1)
        assert torch.equal(vit(pixels), changed)
        vit.refresh()
        assert not torch.allclose(vit(pixels), changed, atol=1e-3)


def test_the_whole_model_runs_on_it():
    vit = ViT(SPEC).requires_grad_(False)
    pixels = images(2, 3, 32, 32)
    asked = dict(tokens=False, logits=True)
    vit.ops = cpu_ops()
    fast = vit.features(pixels, **asked).logits
    vit.ops = torch_ops()
    torch.testing.assert_close(fast, vit.features(pixels, **asked).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", onednn.DTYPES)
def test_attention_that_runs_is_not_wrong(dtype):
    """Its own tests are skipped where its trial has failed: that may be for what PyTorch lacks, not for what is off."""
    from vit_fast import onednn_attention

    assert "is off by" not in onednn_attention.why_not(dtype)
