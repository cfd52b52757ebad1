"""A gradient that is asked for is right; the backends that have none are then not used."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import ViTForImageClassification

from models import NORM, SPEC, hf_model, images, in_float64, no_gradient
from vit_fast import ViT, torch_ops


@pytest.fixture
def vit() -> ViT:
    return ViT.from_hf(hf_model(ViTForImageClassification), NORM)


@pytest.fixture
def pixels() -> Tensor:
    return images(2, 3, 32, 32)


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_those_of_transformers(seed):
    hf = in_float64(hf_model(ViTForImageClassification, seed=seed))
    vit = ViT.from_hf(hf)
    vit.ops = no_gradient()
    size = (24, 40)
    theirs, ours = (images(2, 3, *size, dtype=torch.float64).requires_grad_() for _ in "ab")
    hf(theirs, interpolate_pos_encoding=True).logits.square().sum().backward()
    with pytest.warns(UserWarning, match=r"torch.inference_mode\(\)"):
        vit.features(ours, tokens=False, logits=True).logits.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    named = dict(vit.named_parameters())
    attention = hf.vit.layers[1].attention
    qkv = torch.cat([m.weight.grad for m in (attention.q_proj, attention.k_proj, attention.v_proj)])
    torch.testing.assert_close(named["blocks.1.attn.qkv.weight"].grad, qkv)
    embeddings = hf.vit.embeddings
    torch.testing.assert_close(named["cls_token"].grad, embeddings.cls_token.grad)
    torch.testing.assert_close(named["pos_embed"].grad, embeddings.position_embeddings.grad)
    proj = embeddings.patch_embeddings.projection.weight.grad
    torch.testing.assert_close(named["patch_embed.proj.weight"].grad, proj)
    assert all(p.grad is not None for p in named.values())


def test_a_gradient_through_bytes_reaches_the_patch_weights(vit):
    """uint8 pixels go through folded weights; the gradient is that of the weights they were folded from."""
    data = images(2, 3, 32, 32, dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (NORM.mean, NORM.std))
    grads = []
    for pixels in (data, (data * NORM.rescale - mean) / std):
        vit.zero_grad()
        vit(pixels).square().sum().backward()
        proj = vit.patch_embed.proj
        grads.append((proj.weight.grad.clone(), proj.bias.grad.clone()))
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)


def test_where_no_gradient_is_wanted_the_chosen_table_runs(vit, pixels):
    vit.ops = no_gradient()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            assert not vit(pixels).requires_grad
        with torch.inference_mode():
            vit(pixels)
        vit.requires_grad_(False)
        assert not vit(pixels).requires_grad
        vit.train()
        assert vit(pixels.clone().requires_grad_()).requires_grad  # trained on purpose: no warning
        vit.eval()
        vit.ops = torch_ops()
        assert vit(pixels.clone().requires_grad_()).requires_grad  # it has gradients: no warning


def test_the_gradient_warning_comes_once(vit, pixels):
    vit.ops = no_gradient()
    with pytest.warns(UserWarning, match="no gradient"):
        assert vit(pixels).requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vit(pixels).requires_grad


def test_a_part_that_is_put_in_later_gets_its_gradient(vit, pixels):
    vit.ops = no_gradient()
    vit.requires_grad_(False)
    assert not vit(pixels).requires_grad
    vit.blocks[1].mlp.fc1.bias = nn.Parameter(torch.zeros(96))
    with pytest.warns(UserWarning):
        assert vit(pixels).requires_grad
    vit.requires_grad_(False)
    assert not vit(pixels).requires_grad
    vit.blocks[0] = ViT(SPEC).blocks[0]
    assert vit(pixels).requires_grad
    vit.requires_grad_(False)
    vit.head = nn.Linear(64, 3)
    assert vit.features(pixels, tokens=False, logits=True).logits.requires_grad


@pytest.mark.parametrize("frozen", [False, True])
def test_forward_mode_runs_through_pytorch(frozen):
    """The kernels would drop the tangent without a word."""
    vit = ViT(SPEC).requires_grad_(not frozen)
    x, tangent = images(1, 3, 32, 32), images(1, 3, 32, 32, seed=2)

    def derivative(ops):
        # the one backend of PyTorch's attention that has a forward mode
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(replaced(vit, ops), (x,), (tangent,))[1]

    expected = derivative(torch_ops())
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(derivative(no_gradient()), expected)


def replaced(vit: ViT, ops) -> ViT:
    vit.ops = ops
    return vit


def test_autocast_runs_through_pytorch():
    vit, x = ViT(SPEC, ops=no_gradient()), images(1, 3, 32, 32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        y = vit(x)
        assert torch.equal(y, replaced(vit, torch_ops())(x))
