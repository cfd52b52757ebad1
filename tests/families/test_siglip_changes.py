"""SigLIP changed after loading: what is left to transformers, and weights that are written to."""

import pytest
import torch
from torch import nn

import vit_fast
from models import images, randomize
from towers import agree, left, pair, put
from twins import PIXELS
from vit_fast.state import state_of


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


def test_refresh_looks_at_position_ids_again():
    stock, fast = pair("siglip")
    for model in (stock, fast):
        model.embeddings.position_ids = model.embeddings.position_ids.clone()
    agree(fast, stock, PIXELS)
    for model in (stock, fast):
        model.embeddings.position_ids.copy_(model.embeddings.position_ids.flip(1))
    left(vit_fast.refresh(fast), stock, "position_ids", PIXELS)
