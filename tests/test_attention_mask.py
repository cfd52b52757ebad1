"""Attention with a key mask: the kernels and torch_ops, against a definition in which masked keys are not there."""

from dataclasses import replace

import pytest
import torch

from pairwise import pairwise
from tensors import DTYPES, f64, target

pytest.importorskip("triton")
from attention_options import TORCH, compare, definition, mask_of, packed, rope_of
from vit_fast.kernels.attention import attention, attention_ref, launch
from vit_fast.kernels.attention_tiles import FLASH, launch_config
from vit_fast.kernels.tuning import KNOWN

pytestmark = pytest.mark.usefixtures("on_device")

KINDS = ("padded", "scattered", "first masked", "first blocks masked", "one key")
CHOICES = dict(
    tokens=(1, 5, 50, 197, 201, 257, 300),
    head_dim=(32, 64, 72, 80, 88),
    kind=KINDS,
    queries=(80, 1),  # two tiles and a tail, as far as there are tokens; the class token
    arch=("sm_80", "sm_90"),
    dtype=DTYPES,
)


@pytest.mark.parametrize("tokens, head_dim, kind, queries, arch, dtype", pairwise(**CHOICES))
def test_against_float64(tokens, head_dim, kind, queries, arch, dtype):
    # of one row's few values the largest error is luck
    B = 2 if queries > 1 else 6
    args = packed(B, tokens, 1, head_dim, dtype, queries)
    compare(*args, mask_of(kind, B, tokens), arch=arch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", CHOICES["tokens"])
@pytest.mark.parametrize("head_dim", CHOICES["head_dim"])
@pytest.mark.parametrize("arch", CHOICES["arch"])
def test_every_mask(tokens, head_dim, kind, arch):
    for dtype in DTYPES:
        compare(*packed(2, tokens, 2, head_dim, dtype), mask_of(kind, 2, tokens), arch=arch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [17, 70, 130, 208])
def test_one_pass_and_flash(tokens, kind):
    """Three chunks, whole and with a tail; flash with blocks and tails in which no key is left."""
    args, mask = packed(2, tokens, 1, 32, torch.float16), mask_of(kind, 2, tokens)
    one_pass = launch_config(tokens, tokens, 32, 2, KNOWN["sm_90"], masked=True)
    assert sum(one_pass.chunks) >= tokens
    for config in (one_pass, replace(one_pass, chunks=FLASH, block_n=16)):
        compare(*args, mask, config=config)


@pytest.mark.parametrize("tokens", [50, 300])
@pytest.mark.parametrize("layout", ["transposed", "sliced", "one for all", "one key for all"])
def test_strides_of_a_mask(tokens, layout):
    mask = mask_of("scattered", 3, tokens)
    match layout:
        case "transposed":
            mask = mask.T.contiguous().T
        case "sliced":
            wide = torch.zeros(6, 2 * tokens + 3, dtype=torch.bool)
            wide[::2, 3::2] = mask
            mask = wide[::2, 3::2]
        case "one for all":
            mask = mask[1:2].expand(3, -1)
        case "one key for all":
            mask = torch.ones(3, 1, dtype=torch.bool).expand(-1, tokens)
    compare(*packed(3, tokens, 1, 64, torch.float16, 20), mask)


@pytest.mark.parametrize("tokens", [50, 300])
def test_what_masked_keys_hold_is_of_no_effect(tokens):
    """The largest numbers, in the tail too: bit for bit the same. In k even what is not finite."""
    q, k, v = (t.clone() for t in packed(2, tokens, 1, 64, torch.float16, 20))
    mask = mask_of("padded", 2, tokens) & (torch.arange(tokens) != 1)
    mask[:, 0] = True
    expected, in_torch = launch(q, k, v, 0.125, mask), TORCH(q, k, v, 0.125, mask)
    k[~mask], v[~mask] = 6e4, -6e4
    assert torch.equal(launch(q, k, v, 0.125, mask), expected)
    assert torch.equal(TORCH(q, k, v, 0.125, mask), in_torch)
    for value in (float("nan"), float("inf"), -float("inf")):
        k[~mask] = value
        assert torch.equal(launch(q, k, v, 0.125, mask), expected)


@pytest.mark.parametrize("tokens", [50, 300])
def test_an_image_without_a_key_leaves_the_others_alone(tokens):
    q, k, v = packed(3, tokens, 1, 64, torch.float16, 20)
    mask = mask_of("scattered", 3, tokens)
    expected = launch(q, k, v, 0.125, mask)
    mask = mask.clone()
    mask[1] = False
    y = launch(q, k, v, 0.125, mask)
    assert torch.equal(y[::2], expected[::2])


@pytest.mark.parametrize("tokens", [50, 300])
def test_a_mask_of_ones_is_none(tokens):
    args = packed(2, tokens, 2, 72, torch.float16, 20)
    ones = torch.ones(2, tokens, dtype=torch.bool)
    assert torch.equal(launch(*args, 0.125, ones), launch(*args, 0.125))


def test_scores_of_minus_3e38():
    """The least that fp32 holds, in every score there is: flash's running maximum starts there."""
    q, k, v = (t.clone() for t in packed(1, 300, 1, 64, torch.float32, 20))
    q[:], k[:] = -1.8e18, 1.8e18
    mask = mask_of("first blocks masked", 1, 300)
    y = launch(q, k, v, 0.7, mask)
    assert torch.allclose(y, v[:, 128:].mean(1).expand_as(y), atol=1e-5)


@pytest.mark.parametrize("tokens", [50, 300])
def test_together_with_rope(tokens):
    for kind in KINDS:
        args = packed(2, tokens, 1, 64, torch.float16, 80)
        compare(*args, mask_of(kind, 2, tokens), rope_of(tokens - 5, 64))


@pytest.mark.parametrize(
    "tokens, head_dim, queries, patches, kind, arch",
    [
        (2, 64, 2, 0, "padded", "sm_90"),
        (3, 128, 1, 3, "one key", "sm_90"),
        (17, 128, 17, 17, "one key", "sm_80"),
        (129, 64, 17, 128, "first blocks masked", "sm_80"),
        # the most keys of one pass, and one more
        (272, 64, 80, 267, "padded", "sm_90"),
        (273, 64, 80, 268, "padded", "sm_90"),
        (209, 32, 70, 204, "one key", "sm_100"),
        (20, 1, 20, None, "padded", "sm_90"),
        (40, 127, 33, None, "scattered", "sm_90"),
    ],
)
def test_awkward_shapes(tokens, head_dim, queries, patches, kind, arch):
    rope = None if patches is None else rope_of(patches, head_dim)
    args = packed(3, tokens, 2, head_dim, torch.float16, queries)
    compare(*args, mask_of(kind, 3, tokens), rope, arch=arch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rotated", [False, True])
def test_references_are_the_definition(kind, rotated):
    q, k, v = f64(*packed(3, 50, 2, 24, torch.float64, 30))
    args = q, k, v, 0.2, mask_of(kind, 3, 50), rope_of(45, 24) if rotated else None
    for call in (attention_ref, TORCH):
        torch.testing.assert_close(call(*args), definition(*args), rtol=1e-12, atol=1e-12)


def test_no_table_of_unmasked_calls(monkeypatch):
    from vit_fast.kernels import attention as module

    monkeypatch.setattr(module, "tuned", lambda *args, **shape: pytest.fail("looked up"))
    gpu = KNOWN["sm_90"]
    args = 1, 2, 300, 300, 64, torch.bfloat16, gpu
    for flags in ((True, False), (False, True), (True, True)):
        assert module.config_for(*args, *flags) == launch_config(300, 300, 64, 2, gpu, 2, *flags)


def test_the_operator_takes_a_mask_by_name_and_traces():
    q, k, v = packed(2, 50, 2, 32, torch.float16)
    mask, rope = mask_of("padded", 2, 50), rope_of(45, 32)
    expected = launch(q, k, v, 0.2, mask, rope)
    assert torch.equal(attention(q, k, v, 0.2, mask=mask, rope=rope), expected)
    torch.library.opcheck(
        torch.ops.vit_fast.attention.default,
        (q, k, v, 0.2, mask, rope),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    "mask, words",
    [
        (torch.ones(2, 51, dtype=torch.bool), r"mask is \(2, 51\), expected \(2, 50\)"),
        (torch.ones(1, 50, dtype=torch.bool), r"mask is \(1, 50\), expected \(2, 50\)"),
        (torch.ones(2, 1, 1, 50, dtype=torch.bool), r"mask is \(2, 1, 1, 50\)"),
        (torch.ones(2, 50), "mask is torch.float32, expected torch.bool"),
        (torch.ones(2, 50, dtype=torch.uint8), "mask is torch.uint8, expected torch.bool"),
        (torch.ones(2, 50, dtype=torch.bool, device="meta"), "mask is on meta"),
        (torch.empty_strided((2, 50), (1, 2**26), dtype=torch.bool, device="meta"), "over 2.31"),
    ],
)
def test_masks_that_do_not_fit(mask, words):
    strided = mask.stride(-1) > 1
    q, k, v = packed(2, 50, 1, 32, torch.float16)
    if strided:
        q, k, v = (t.to("meta") for t in (q, k, v))
    mask = mask if mask.is_meta else mask.to(q.device)
    with pytest.raises(ValueError, match=words):
        launch(q, k, v, 1.0, mask, gpu=target("sm_90"))
