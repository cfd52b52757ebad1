from dataclasses import replace

import pytest
import torch

from accuracy import assert_as_accurate
from pairwise import pairwise
from tensors import DTYPES, f64, target, values

pytest.importorskip("triton")
from vit_fast.kernels import attention as module
from vit_fast.kernels import attention_tiles
from vit_fast.kernels.attention import (
    attention,
    attention_ref,
    launch,
)
from vit_fast.kernels.attention_tiles import head_parts, key_chunks, launch_config
from vit_fast.kernels.tuning import KNOWN
from vit_fast.ops import torch_ops

pytestmark = pytest.mark.usefixtures("on_device")

LAYOUTS = ("packed", "separate", "heads first", "transposed", "padded")
CASES = pairwise(
    tokens=(1, 7, 50, 196, 197, 257),
    head_dim=(32, 64, 72, 80, 88, 128, 20),
    queries=("all", "class token"),
    batch_heads=((1, 1), (2, 2)),
    kind=("normal", "one channel 1000x", "large scores"),
    layout=LAYOUTS,
    arch=("sm_80", "sm_90"),
    dtype=DTYPES,
)


def qkv(layout, kind, B, N, H, D, dtype):
    """q, k, v [B, N, H, D] as views of a layout; what lies between is NaN."""
    x = values("normal", B, N, 3, H, D)
    match kind:
        case "large scores":
            x[:, :, :2] *= 8
        case "one channel 1000x":
            x[:, :, 2, :, D // 3] *= 1000  # of v: in q and k it would leave one key
    x = x.to(dtype)
    nan = float("nan")
    match layout:
        case "packed":
            return x.unbind(2)
        case "separate":
            return [t.contiguous() for t in x.unbind(2)]
        case "heads first":
            return [t.transpose(1, 2).contiguous().transpose(1, 2) for t in x.unbind(2)]
        case "transposed":
            return [t.transpose(1, 3).contiguous().transpose(1, 3) for t in x.unbind(2)]
        case "padded":
            wide = x.new_full((B, N + 3, 3, H, D + 8), nan)
            wide[:, :N, :, :, :D] = x
            return wide[:, :N, :, :, :D].unbind(2)


def flash_in_pytorch(q, k, v, scale):
    """Attention as every fused kernel on a GPU computes it: scores in fp32, exponentials rounded to v's dtype."""
    s = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) * scale
    p = (s - s.amax(-1, keepdim=True)).exp()
    o = torch.einsum("bhqk,bkhd->bqhd", p.to(v.dtype).float(), v.float())
    return (o / p.sum(-1).transpose(1, 2)[..., None]).flatten(2).to(q.dtype)


TORCH = torch_ops().attention


def compare(call, q, k, v, baseline=TORCH):
    scale = q.shape[-1] ** -0.5
    y = call(q, k, v, scale)
    assert_as_accurate(y, attention_ref(*f64(q, k, v), scale), baseline(q, k, v, scale))


@pytest.mark.parametrize("tokens, head_dim, queries, batch_heads, kind, layout, arch, dtype", CASES)
def test_against_float64(tokens, head_dim, queries, batch_heads, kind, layout, arch, dtype):
    B, H = batch_heads
    # of one row's few values the largest error is luck
    B *= 8 if queries == "class token" else 1
    q, k, v = qkv(layout, kind, B, tokens, H, head_dim, dtype)
    q = q[:, :1] if queries == "class token" else q
    # PyTorch's attention on a CPU does not round the exponentials, and 1000 v shows it where a sum cancels
    baseline = flash_in_pytorch if kind == "one channel 1000x" else TORCH
    compare(lambda *args: launch(*args, gpu=target(arch)), q, k, v, baseline)


@pytest.mark.parametrize("head_dim", [64, 72])
def test_577_tokens(head_dim):
    compare(attention, *qkv("packed", "normal", 1, 577, 1, head_dim, torch.float16))


@pytest.mark.parametrize("kind", ["normal", "large scores"])
@pytest.mark.parametrize("tokens", [16, 17, 64, 65, 128, 150, 197, 208, 257, 272])
def test_one_pass_and_flash_agree_with_the_definition(tokens, kind):
    args = qkv("packed", kind, 1, tokens, 2, 32, torch.float16)
    one_pass = launch_config(tokens, tokens, 32, 2, KNOWN["sm_90"])
    assert sum(one_pass.chunks) >= tokens
    for config in (one_pass, replace(one_pass, chunks=attention_tiles.FLASH)):
        compare(lambda *a, c=config: launch(*a, config=c), *args)


def test_scores_beyond_exp():
    """Scores of +-3e4: without the running maximum exp overflows."""
    q, k, v = qkv("packed", "normal", 1, 197, 1, 64, torch.float32)
    q, k = q * 100, k * 100
    for config in (None, replace(launch_config(197, 197, 64, 4, KNOWN["sm_90"]), block_n=16)):
        compare(lambda *a, c=config: launch(*a, config=c), q, k, v)


def test_a_nan_stays_in_its_image():
    q, k, v = (t.clone() for t in qkv("packed", "normal", 2, 197, 2, 64, torch.float16))
    k[0, 196, 1, 5] = float("nan")
    y = attention(q, k, v, 0.125).view(2, 197, 2, 64)
    assert y[0, :, 1].isnan().all()
    assert y[0, :, 0].isfinite().all() and y[1].isfinite().all()


def test_empty_batch():
    q, k, v = torch.empty(0, 197, 3, 2, 64).unbind(2)
    assert attention(q, k, v, 0.125).shape == (0, 197, 128)


@pytest.mark.parametrize(
    "q, k, v, words",
    [
        ((2, 5, 1, 64), (2, 6, 1, 64), (2, 5, 1, 64), "k is (2, 6, 1, 64), v is (2, 5, 1, 64)"),
        ((2, 5, 1, 64), (1, 6, 1, 64), (1, 6, 1, 64), "q is (2, 5, 1, 64), k is (1, 6, 1, 64)"),
        ((2, 5, 64), (2, 5, 64), (2, 5, 64), "q is (2, 5, 64)"),
        ((2, 5, 1, 160), (2, 5, 1, 160), (2, 5, 1, 160), "head_dim is 160, supported are 1 to 128"),
        ((2, 5, 1, 64), (2, 0, 1, 64), (2, 0, 1, 64), "k is (2, 0, 1, 64)"),
    ],
)
def test_wrong_shapes(q, k, v, words):
    with pytest.raises(ValueError) as error:
        attention(torch.ones(q), torch.ones(k), torch.ones(v), 1.0)
    assert words in str(error.value)


def test_wrong_dtype_and_scale():
    q = torch.ones(1, 5, 1, 64)
    with pytest.raises(ValueError, match="v is torch.float16, expected torch.float32"):
        attention(q, q, q.half(), 1.0)
    with pytest.raises(ValueError, match="scale is -1.0"):
        attention(q, q, q, -1.0)


@pytest.mark.parametrize(
    "D, parts",
    [(64, (64, 0, 0)), (72, (64, 16, 0)), (80, (64, 16, 0)), (88, (64, 32, 0)), (96, (64, 32, 0)),
     (104, (64, 32, 16)), (128, (128, 0, 0)), (20, (32, 0, 0)), (1, (16, 0, 0))],
)  # fmt: skip
def test_head_parts(D, parts):
    assert head_parts(D) == parts


@pytest.mark.parametrize(
    "N, chunks",
    [(1, (16, 0, 0)), (50, (64, 0, 0)), (196, (128, 64, 16)), (197, (128, 64, 16)), (257, (128, 128, 16)),
     (400, (0, 0, 0))],
)  # fmt: skip
def test_key_chunks(N, chunks):
    assert key_chunks(N) == chunks


@pytest.mark.parametrize("keys", [50, 130, 300])
@pytest.mark.parametrize("queries", [1, 16, 17, 63, 64, 65, 80, 81, 96, 97])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_last_tiles_of_every_height(queries, keys, arch):
    q, k, v = qkv("packed", "normal", 2, max(queries, keys), 1, 32, torch.float16)
    args = q[:, :queries], k[:, :keys], v[:, :keys]
    compare(lambda *a: launch(*a, gpu=target(arch)), *args)


@pytest.mark.parametrize("tokens", [50, 96, 192])
@pytest.mark.parametrize("head_dim", [32, 72])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_every_candidate(tokens, head_dim, arch):
    gpu = target(arch)
    args = qkv("packed", "normal", 1, tokens, 4, head_dim, torch.float16)
    for config in attention_tiles.candidates(tokens, tokens, head_dim, 2, gpu):
        compare(lambda *a, c=config: launch(*a, gpu=gpu, config=c), *args)


def test_heads_are_shared_out_evenly():
    """Two a program where heads are small and many, but not of 3."""
    gpu = KNOWN["sm_90"]
    assert module.config_for(2000, 4, 50, 50, 64, torch.bfloat16, gpu).heads == 2
    assert module.config_for(2000, 3, 50, 50, 64, torch.bfloat16, gpu).heads == 1


@pytest.mark.parametrize("heads", [2, 4])
def test_several_heads_a_program(heads):
    q, k, v = qkv("packed", "normal", 2, 70, 4, 32, torch.float16)
    config = replace(launch_config(70, 50, 32, 2, KNOWN["sm_90"]), heads=heads)
    assert config.tail_m == 16
    compare(lambda *a: launch(*a, gpu=target("sm_90"), config=config), q, k[:, :50], v[:, :50])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"heads": 2}, "2 heads a program do not share out 3 heads"),
        ({"chunks": (64, 0, 0)}, "one pass over 64 keys is not for 70 keys"),
        ({"tail_m": 32, "block_m": 128}, "32 rows does not hold what 70 queries leave of 128"),
        ({"tail_m": 16, "block_m": 32}, None),
        ({"chunks": (0, 0, 0), "heads": 4}, "4 heads a program do not share out"),
    ],
)
def test_a_config_that_leaves_values_out_is_refused(change, words):
    q, k, v = qkv("packed", "normal", 1, 70, 3, 32, torch.float16)
    config = replace(launch_config(70, 70, 32, 2, KNOWN["sm_90"]), **change)
    if words is None:
        return compare(lambda *a: launch(*a, config=config), q, k, v)
    with pytest.raises(ValueError, match=words):
        launch(q, k, v, 1.0, config=config)


@pytest.mark.parametrize("strides", [(1, 2**29, 64, 1), (1, 64, 2**30, 1)])
def test_an_image_beyond_32_bit_offsets_is_refused(strides):
    q = torch.empty_strided((1, 5, 2, 64), strides, dtype=torch.float16, device="meta")
    with pytest.raises(ValueError, match="spans over 2.31 values"):
        launch(q, q, q, 1.0, gpu=KNOWN["sm_90"])
