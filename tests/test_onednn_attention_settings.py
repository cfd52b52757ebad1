"""The oneDNN attention under settings of PyTorch that are not its own; strides, sizes and values out of the way."""

import pytest
import torch
from torch import Tensor
from transformers import ViTModel

from accuracy import assert_as_accurate
from models import hf_model, images
from tensors import f64, packed
from vit_fast import ViT, cpu_ops, onednn_attention, torch_ops
from vit_fast.onednn_attention import AT_ONCE, DTYPES, HELD, SCORES, takes
from vit_fast.onednn_attention import onednn_attention as attention

WHY_NOT = onednn_attention.why_not(torch.float32)
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

DEFINITION = torch_ops().attention


def check(q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    y = attention(q, k, v, scale)
    assert_as_accurate(y, DEFINITION(*f64(q, k, v), scale), DEFINITION(q, k, v, scale))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_a_default_dtype(default):
    """The scale is kept for the process: it is fp32 whenever it was made."""
    tensors = packed()
    onednn_attention._scale.cache_clear()
    torch.set_default_dtype(default)
    try:
        y = attention(*tensors, 0.3)
    finally:
        torch.set_default_dtype(torch.float32)
    again = attention(*tensors, 0.3)
    onednn_attention._scale.cache_clear()
    assert torch.equal(again, attention(*tensors, 0.3))
    assert torch.equal(again, y)


def test_a_default_device():
    onednn_attention._scale.cache_clear()
    tensors = packed()
    with torch.device("meta"):
        assert onednn_attention._scale(0.3).device.type == "cpu"
        y = attention(*tensors, 0.3)
    assert torch.equal(y, attention(*tensors, 0.3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [7, 60])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("made_before", [True, False])
def test_autocast(dtype, N, device, made_before):
    """TorchScript keeps an executor for each state of it."""
    tensors = packed(N=N, dtype=dtype)
    onednn_attention._build.cache_clear()
    if made_before:
        attention(*tensors, 0.125)
    torch.set_autocast_enabled(device, True)
    try:
        y = attention(*tensors, 0.125)
        assert torch.is_autocast_enabled(device)
    finally:
        torch.set_autocast_enabled(device, False)
        torch.clear_autocast_cache()
    assert torch.equal(y, attention(*tensors, 0.125))
    assert_as_accurate(y, DEFINITION(*f64(*tensors), 0.125), DEFINITION(*tensors, 0.125))


def test_an_executor_without_the_partition_is_loud(monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    onednn_attention._build.cache_clear()
    tensors = packed()
    attention(*tensors, 0.125)
    torch.set_autocast_enabled("cpu", True)
    try:
        with pytest.raises(AttributeError, match="NoneType"):
            attention(*tensors, 0.125)
    finally:
        torch.set_autocast_enabled("cpu", False)
        torch.clear_autocast_cache()


@pytest.mark.parametrize("precision", ["bf16", "tf32", "ieee"])
def test_fp32_is_fp32(precision):
    """Which allows less, and never asks for it."""
    tensors = packed()
    expected = attention(*tensors, 0.125)
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    onednn_attention._build.cache_clear()
    matmul.fp32_precision = precision
    try:
        assert torch.equal(attention(*tensors, 0.125), expected)
    finally:
        matmul.fp32_precision = before


def test_onednn_turned_off_later():
    """PyTorch's attention, to the last bit."""
    tensors = packed(N=61)
    attention(*tensors, 0.125)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(attention(*tensors, 0.125), DEFINITION(*tensors, 0.125))


def strided(q: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Some values of q in a tensor of these strides."""
    return q.flatten().as_strided(q.shape, strides)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize(
    "strides",
    [(640, 8, 64 * 60, 1), (64 * 60, 1, 60, 60)],
    ids=["rows that overlap", "lanes over rows"],
)
def test_tensors_that_overlap_themselves(dtype, which, strides):
    tensors = [t.contiguous() for t in packed(B=8, H=3, dtype=dtype)]
    tensors[which] = strided(tensors[which], strides)
    threads = torch.get_num_threads()
    check(*tensors, 0.125)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("axis", range(4))
def test_expanded(dtype, which, axis):
    tensors = list(packed(dtype=dtype))
    t = tensors[which]
    tensors[which] = t.narrow(axis, 0, 1).expand(t.shape)
    check(*tensors, 0.125)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [0, 3, 7919])
@pytest.mark.parametrize("axis", [0, 2])
def test_strides_of_an_axis_of_one(dtype, stride, axis):
    """They mean nothing, and may be anything."""
    B, H = (1, 9) if axis == 0 else (9, 1)
    tensors = [t.contiguous() for t in packed(B=B, H=H, dtype=dtype)]
    for which, t in enumerate(tensors):
        strides = list(t.stride())
        strides[axis] = stride
        tensors[which] = t.as_strided(t.shape, strides)
    check(*tensors, 0.125)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("Dh", [1, 2, 3, 8, 17, 31, 33, 63, 65, 88, 104, 128, 255, 256])
@pytest.mark.parametrize("heads", [1, 9])
def test_widths_of_a_head(dtype, Dh, heads):
    """One head at once, nine one by one."""
    check(*packed(1, 53, heads, Dh, dtype=dtype), Dh**-0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries, keys", [(2500, 1), (1, 2500), (1250, 2), (3, 1111), (61, 41)])
def test_few_rows(dtype, queries, keys):
    assert takes(dtype, 6, queries, keys, 1)
    q = packed(N=queries, dtype=dtype)[0]
    _, k, v = packed(N=keys, dtype=dtype, seed=1)
    check(q, k, v, 0.125)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, -0.0, -0.125, 1e-3, 1e-30, 3e4])
def test_scales(dtype, scale):
    check(*packed(dtype=dtype), scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-40, -3e4])
@pytest.mark.parametrize("which", range(3))
def test_one_value_everywhere(dtype, value, which):
    """All scores are the same; and what is too small for a normal number."""
    tensors = list(packed(dtype=dtype))
    if which == 2 and value == 1e-40:
        pytest.skip("numbers below the normal ones are no matter of relative rounding")
    tensors[which] = torch.full_like(tensors[which], value)
    check(*tensors, 1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_at_once(dtype, threads):
    """For few heads a thread oneDNN goes another way, and holds the scores of all."""
    tensors = packed(1, 61, 3, dtype=dtype)
    for count in (1, 2, 7):
        threads(count)
        check(*tensors, 0.125)
    keys = HELD // 1000
    assert takes(dtype, 1, 1000, keys, 1)
    assert not takes(dtype, AT_ONCE, 1000, keys, 1)
    assert takes(dtype, AT_ONCE + 1, 1000, keys, 1)
    assert not takes(dtype, 1000, 1000, keys, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_trial_runs_both_ways_of_onednn(dtype, monkeypatch):
    heads = []
    through = onednn_attention._through_onednn

    def noted(q: Tensor, *rest) -> Tensor:
        heads.append(q.shape[0] * q.shape[2])
        return through(q, *rest)

    monkeypatch.setattr(onednn_attention, "_through_onednn", noted)
    assert onednn_attention._try(dtype) == ""
    assert heads[0] <= AT_ONCE * torch.get_num_threads() < heads[1]


def test_gradients_of_torch_func_and_batches():
    """An error or right, never silently missing."""
    q, k, v = packed(N=51)
    assert q.shape[1] ** 2 > SCORES
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda t: attention(t, k, v, 0.125).sum())(q)
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(lambda t: attention(t, k, v, 0.125), (q,), (q,))
    many = torch.stack((q, -q))
    y = torch.func.vmap(lambda t: attention(t, k, v, 0.125))(many)
    assert torch.equal(y[0], attention(q, k, v, 0.125))
    assert torch.equal(y[1], attention(-q, k, v, 0.125))


def test_traced():
    q, k, v = packed(N=62)
    traced = torch.jit.trace(lambda *t: attention(*t, 0.125), (q, k, v))
    assert "vit_fast::onednn_attention" in str(traced.graph)
    assert torch.equal(traced(-q, k, v), attention(-q, k, v, 0.125))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_pixel_that_is_no_number(dtype, value):
    """It spoils its image, as with PyTorch's operations, and no other."""
    vit = ViT.from_hf(hf_model(ViTModel, dtype, image_size=64)).requires_grad_(False)
    pixels = images(3, 3, 64, 64, dtype=dtype)
    pixels[1, 0, 20, 30] = value
    nans = []
    for ops in (cpu_ops(), torch_ops()):
        vit.ops = ops
        with torch.inference_mode():
            nans.append(vit(pixels).isnan())
    assert torch.equal(*nans)
    assert nans[0][1].all()
    assert not nans[0][[0, 2]].any()
