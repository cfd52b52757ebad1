"""Attention with rotary positions of patches: the kernels and torch_ops, against complex products in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from accuracy import assert_as_accurate
from pairwise import pairwise
from tensors import DTYPES, target, values

pytest.importorskip("triton")
from attention_options import TORCH, compare, definition, mask_of, packed, rope_of
from vit_fast.kernels import attention as module
from vit_fast.kernels.attention import launch
from vit_fast.kernels.attention_tiles import FLASH, launch_config
from vit_fast.kernels.rotation import rotate
from vit_fast.kernels.tuning import KNOWN

pytestmark = pytest.mark.usefixtures("on_device")

CHOICES = dict(
    tokens=(6, 50, 197, 201, 257, 300),
    prefix=(0, 1, 5),
    head_dim=(32, 64, 128),
    queries=("all", "class token", "half"),
    arch=("sm_80", "sm_90"),
    dtype=DTYPES,
)


def taken(tokens, queries):
    return {"all": tokens, "class token": 1, "half": tokens // 2}[queries]


@pytest.mark.parametrize("tokens, prefix, head_dim, queries, arch, dtype", pairwise(**CHOICES))
def test_against_float64(tokens, prefix, head_dim, queries, arch, dtype):
    # of one row's few values the largest error is luck
    B = 6 if queries == "class token" else 1
    args = packed(B, tokens, 1, head_dim, dtype, taken(tokens, queries))
    compare(*args, rope=rope_of(tokens - prefix, head_dim), arch=arch)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", CHOICES["tokens"])
@pytest.mark.parametrize("prefix", CHOICES["prefix"])
@pytest.mark.parametrize("head_dim", CHOICES["head_dim"])
@pytest.mark.parametrize("arch", CHOICES["arch"])
def test_every_rotation(tokens, prefix, head_dim, arch):
    rope = rope_of(tokens - prefix, head_dim)
    for dtype in DTYPES:
        for queries in (tokens, tokens // 2 + 1):
            compare(*packed(2, tokens, 2, head_dim, dtype, queries), rope=rope, arch=arch)


@pytest.mark.parametrize("tokens, patches", [(1, 1), (1, 0), (5, 4), (5, 5), (50, 3), (130, 20)])
def test_few_tokens_and_few_patches(tokens, patches):
    """Of one block; patches that begin in a later chunk of the keys and a later tile of the queries."""
    args = packed(4, tokens, 2, 64, torch.float16)
    for arch in ("sm_80", "sm_90"):
        compare(*args, rope=rope_of(patches, 64), arch=arch)


@pytest.mark.parametrize("queries", [3, 5, 6, 40, 64, 70])
@pytest.mark.parametrize("tokens", [70, 150])
def test_the_first_queries(tokens, queries):
    """Before, at and behind the first patch; one pass, and flash in blocks of 16."""
    args, rope = packed(2, tokens, 1, 32, torch.float16, queries), rope_of(tokens - 5, 32)
    one_pass = launch_config(100, tokens, 32, 2, KNOWN["sm_90"], rotated=True)
    assert sum(one_pass.chunks) >= tokens
    for config in (one_pass, replace(one_pass, chunks=FLASH, block_n=16)):
        compare(*args, rope=rope, config=config)


@pytest.mark.parametrize("tail_m", [0, 16])
@pytest.mark.parametrize("chunks", [FLASH, (64, 16, 0)])
def test_tiles_of_every_height(tail_m, chunks):
    config = replace(
        launch_config(70, 70, 32, 2, KNOWN["sm_90"], rotated=True), tail_m=tail_m, chunks=chunks
    )
    compare(*packed(1, 70, 2, 32, torch.float16), rope=rope_of(65, 32), config=config)


@pytest.mark.parametrize("head_dim", [2, 16, 48, 72, 80])
@pytest.mark.parametrize("queries", [50, 20, 2])
def test_head_dims_that_the_kernels_do_not_turn(head_dim, queries):
    args = packed(2, 50, 2, head_dim, torch.float16, queries)
    compare(*args, rope=rope_of(45, head_dim))
    compare(*args, mask_of("scattered", 2, 50), rope_of(45, head_dim))


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_these_are_turned_by_the_kernels(head_dim, monkeypatch):
    monkeypatch.setattr(module, "rotate", lambda *args: pytest.fail("turned beforehand"))
    launch(*packed(1, 20, 1, head_dim, torch.float16), 0.2, rope=rope_of(15, head_dim))


@pytest.mark.parametrize("tokens", [50, 300])
def test_turned_in_fp32_and_rounded_once(tokens):
    """In PyTorch to the bit. In the kernels as attention to what was turned beforehand, but for the order of sums:
    turned in fp16, most values would be others.
    """
    q, k, v = packed(1, tokens, 1, 64, torch.float16)
    rope = rope_of(tokens - 1, 64)
    turned = [rotate(t, rope, tokens) for t in (q, k)]
    for t, x in zip(turned, (q, k), strict=True):
        assert torch.equal(t, rotate(x.float(), rope, tokens).half())
    y = launch(q, k, v, 0.5, rope=rope)
    assert (y == launch(*turned, v, 0.5)).double().mean() > 0.95


@pytest.mark.parametrize("tokens", [16, 64, 96])
def test_blocks_without_a_tail(tokens):
    """The last of them is taken first."""
    one_pass = launch_config(tokens, tokens, 32, 2, KNOWN["sm_90"], rotated=True)
    config = replace(one_pass, chunks=FLASH, block_n=16)
    compare(*packed(1, tokens, 2, 32, torch.float16), rope=rope_of(tokens - 1, 32), config=config)


@pytest.mark.parametrize("tokens", [50, 300])
def test_strides(tokens):
    """Tokens apart, heads first, padding of NaN; a table that is a view."""
    wide = torch.full((1, tokens + 3, 3, 2, 72), float("nan"), dtype=torch.float16)
    q, k, v = packed(1, tokens, 2, 64, torch.float16)
    inner = wide[:, :tokens, ..., :64]
    inner.copy_(torch.stack((q, k, v), 2))
    rope = rope_of(tokens - 5, 64)
    apart = torch.full((2, 32, tokens), float("nan")).transpose(1, 2)[:, 5:]
    apart.copy_(rope)
    expected = launch(q, k, v, 0.125, rope=rope)
    for layout in (
        inner.unbind(2),
        [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)],
    ):
        assert torch.equal(launch(*layout, 0.125, rope=apart), expected)
    compare(*inner.unbind(2), rope=apart)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_transformers_own(prefix):
    modeling = pytest.importorskip("transformers.models.dinov3_vit.modeling_dinov3_vit")
    q, k, v = values("normal", 2, 30 + prefix, 3, 2, 16).float().unbind(2)
    rope = rope_of(30, 16)
    cos, sin = (t.repeat(1, 2) for t in rope)
    tq, tk = modeling.apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    expected = torch.nn.functional.scaled_dot_product_attention(
        tq, tk, v.transpose(1, 2), scale=0.25
    )
    expected = expected.transpose(1, 2).flatten(2)
    assert_as_accurate(
        TORCH(q, k, v, 0.25, None, rope), definition(q, k, v, 0.25, None, rope), expected
    )
    torch.testing.assert_close(rotate(q, rope, 30 + prefix), tq.transpose(1, 2))


def test_torch_ops_have_a_gradient():
    args = [t.detach().requires_grad_() for t in packed(2, 9, 1, 8, torch.float64, 7)]
    mask, rope = mask_of("scattered", 2, 9), rope_of(6, 8)
    assert torch.autograd.gradcheck(lambda q, k, v: TORCH(q, k, v, 0.3, mask, rope), args)


def test_torch_ops_export_and_compile_without_a_break():
    class Attend(torch.nn.Module):
        def forward(self, q, k, v, mask, rope):
            return TORCH(q, k, v, 0.3, mask, rope)

    args = *packed(2, 9, 1, 8, torch.float32, 7), mask_of("scattered", 2, 9), rope_of(6, 8)
    expected = Attend()(*args)
    exported = torch.export.export(Attend(), args).module()
    compiled = torch.compile(Attend(), fullgraph=True, backend="eager")
    for call in (exported, compiled):
        torch.testing.assert_close(call(*args), expected)


def table(*shape: int, **how) -> Tensor:
    return torch.ones(shape, **how)


@pytest.mark.parametrize(
    "rope, words",
    [
        (table(2, 45, 32), r"rope is \(2, 45, 32\), expected \(2, 45, 16\)"),
        (table(3, 45, 16), r"rope is \(3, 45, 16\), expected \(2, 45, 16\)"),
        (table(45, 16), r"rope is \(45, 16\)"),
        (table(2, 51, 16), "rope is of 51 tokens and q of 50, k of 50"),
        (table(2, 45, 16, dtype=torch.float16), "rope is torch.float16, expected torch.float32"),
        (table(2, 45, 16, dtype=torch.float64), "rope is torch.float64, expected torch.float32"),
        (table(2, 45, 16, device="meta"), "rope is on meta"),
    ],
)
def test_tables_that_do_not_fit(rope, words):
    args = packed(2, 50, 1, 32, torch.float16)
    rope = rope if rope.is_meta else rope.to(args[0].device)
    with pytest.raises(ValueError, match=words):
        launch(*args, 1.0, rope=rope, gpu=target("sm_90"))


def test_heads_and_queries_that_do_not_fit():
    odd = packed(2, 50, 1, 33, torch.float16)
    with pytest.raises(ValueError, match="head_dim is 33, rope needs an even one"):
        launch(*odd, 1.0, rope=rope_of(45, 32))
    q, k, v = packed(2, 50, 1, 32, torch.float16)
    with pytest.raises(ValueError, match="q of 50, k of 40"):
        launch(q, k[:, :40], v[:, :40], 1.0, rope=rope_of(35, 32))
