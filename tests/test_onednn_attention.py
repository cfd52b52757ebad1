"""cpu_ops()' attention: one partition of oneDNN Graph against the definition in float64, and what it leaves alone."""

import pytest
import torch
from torch import Tensor
from transformers import ViTModel

from accuracy import assert_as_accurate
from models import hf_model, images, in_float64
from tensors import LAYOUTS, f64, laid_out, packed, values
from vit_fast import ViT, cpu_ops, onednn_attention, torch_ops
from vit_fast.onednn_attention import DTYPES, takes
from vit_fast.onednn_attention import onednn_attention as attention

WHY_NOT = onednn_attention.why_not(torch.float32)
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

DEFINITION = torch_ops().attention


def check(q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    y = attention(q, k, v, scale)
    assert_as_accurate(y, DEFINITION(*f64(q, k, v), scale), DEFINITION(q, k, v, scale))
    assert y.is_contiguous()


@pytest.fixture
def through_onednn(monkeypatch):
    """PyTorch's attention is out of reach, once the trial has passed."""
    assert [onednn_attention.why_not(dtype) for dtype in DTYPES] == ["", ""]

    def refused(*_):
        raise AssertionError("PyTorch's attention was called")

    monkeypatch.setattr(onednn_attention, "_sdpa", refused)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("Dh", [64, 72, 80])
@pytest.mark.parametrize(
    "N, rows", [(1, 1), (7, 7), (50, 50), (197, 197), (197, 1), (197, 20), (257, 257), (577, 577)]
)
def test_against_float64(dtype, Dh, N, rows):
    q, k, v = packed(N=N, Dh=Dh, dtype=dtype)
    check(q[:, :rows], k, v, Dh**-0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [50, 197])
@pytest.mark.parametrize("largest", [5, 50, 500])
def test_large_scores(dtype, N, largest, through_onednn):
    """Which are not rounded to bf16 before the softmax: from 5 on the rule sees that."""
    q, k, v = packed(N=N, dtype=dtype)
    scores = torch.einsum("bqhd,bkhd->bhqk", *f64(q, k))
    scale = largest / float(scores.abs().max())
    y = attention(q, k, v, scale)
    assert_as_accurate(y, DEFINITION(*f64(q, k, v), scale), DEFINITION(q, k, v, scale))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["one channel 1000x", "constant rows", "tiny"])
@pytest.mark.parametrize("which", range(3))
def test_values(dtype, kind, which):
    tensors = list(packed(dtype=dtype))
    tensors[which] = values(kind, 2, 60, 3, 64, seed=5).cpu().to(dtype)
    check(*tensors, 0.01 if kind == "one channel 1000x" else 0.125)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layout", [*LAYOUTS, "heads first", "every other lane", "one head for all"]
)
def test_layouts(dtype, layout):
    """What lies between the elements of a layout is NaN."""

    def made(t: Tensor) -> Tensor:
        match layout:
            case "heads first":
                return t.transpose(1, 2).contiguous().transpose(1, 2)
            case "every other lane":
                wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), float("nan"))
                wide[..., ::2] = t
                return wide[..., ::2]
            case "one head for all":
                return t[:, :, :1].expand(t.shape)
        return laid_out(t, layout)

    check(*map(made, packed(dtype=dtype)), 0.125)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_of_another_tensor(dtype, through_onednn):
    """The last block for a few rows: q of one product, k and v of another."""
    x = values("normal", 2, 197, 2 * 3 * 64).cpu().to(dtype)
    k, v = x.view(2, 197, 2, 3, 64).unbind(2)
    q = values("normal", 2, 20, 3, 64, seed=1).cpu().to(dtype)
    y = attention(q, k, v, 0.125)
    assert_as_accurate(y, DEFINITION(*f64(q, k, v), 0.125), DEFINITION(q, k, v, 0.125))


def test_an_empty_batch():
    assert attention(*packed(B=0), 0.125).shape == (0, 60, 3 * 64)


def test_which_sizes_it_takes():
    fp32, bf16 = DTYPES
    assert takes(fp32, 12, 50, 50, 1)
    assert takes(bf16, 12, 1, 197, 1)
    assert not takes(fp32, 12, 1, 1370, 1)
    assert not takes(fp32, 12, 7, 7, 1)
    assert not takes(bf16, 12, 2, 197, 1)


def test_gradients_and_modes(through_onednn):
    q, k, v = packed()
    onednn_attention._scale.cache_clear()
    with torch.inference_mode():  # first: what is kept comes from here
        y = attention(q, k, v, 0.125)
    expected = attention(q, k, v, 0.125)
    with torch.inference_mode():
        assert y.is_inference()
        assert torch.equal(y, expected)
    q = q.clone().requires_grad_()
    with torch.no_grad():
        y = attention(q, k, v, 0.125)
    assert not (y.requires_grad or y.is_inference())
    assert torch.equal(y, expected)
    y = attention(q, k, v, 0.125)
    assert torch.equal(y, expected)
    with pytest.raises(RuntimeError, match=r"vit_fast\.onednn_attention has no gradient"):
        y.sum().backward()


def test_opcheck():
    torch.library.opcheck(attention, (*packed(), 0.125))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(q=torch.randn(2, 60, 3, 64).half()), "q is torch.float16, expected torch.float32"),
        (dict(k=torch.randn(2, 60, 3, 64).bfloat16()), "k is torch.bfloat16"),
        (dict(k=torch.randn(2, 60, 4, 64)), r"k is \(2, 60, 4, 64\), expected \(2, 60, 3, 64\)"),
        (dict(v=torch.randn(2, 61, 3, 64)), r"v is \(2, 61, 3, 64\), expected \(2, 60, 3, 64\)"),
        (dict(q=torch.randn(60, 3, 64)), r"q is \(60, 3, 64\)"),
    ],
)
def test_refusals(change, message):
    arguments = dict(zip("qkv", packed(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        attention(**arguments, scale=0.125)


@pytest.mark.parametrize(
    "dtype, pooled",
    [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)],
)
def test_a_model(dtype, pooled, through_onednn):
    """65 tokens, each block through oneDNN; in bf16 the class token alone too."""
    hf = hf_model(ViTModel, dtype, image_size=64)
    vit = ViT.from_hf(hf).requires_grad_(False)
    pixels = images(3, 3, 64, 64, dtype=dtype)

    def run(ops) -> Tensor:
        vit.ops = ops
        if pooled:
            return vit.features(pixels, tokens=False, pooled=True).pooled
        return vit(pixels)

    name = "pooler_output" if pooled else "last_hidden_state"
    with torch.inference_mode():
        ref = getattr(in_float64(hf)(pixels.double()), name)
        assert_as_accurate(run(cpu_ops()), ref, getattr(hf(pixels), name))


def test_masks_and_positions_in_the_rotation():
    """Go as by the definition."""
    q, k, v = packed()
    mask = torch.ones(2, 60, dtype=torch.bool)
    mask[1, 40:] = False
    angles = torch.rand(54, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rope = torch.stack((angles.cos(), angles.sin())).float()
    for options in (dict(mask=mask), dict(rope=rope), dict(mask=mask, rope=rope)):
        exact = {n: t.double() if n == "rope" else t for n, t in options.items()}
        y = cpu_ops().attention(q, k, v, 0.125, **options)
        ref = DEFINITION(*f64(q, k, v), 0.125, **exact)
        assert_as_accurate(y, ref, DEFINITION(q, k, v, 0.125, **options))
