from dataclasses import replace

import pytest
import torch

from accuracy import assert_as_accurate
from pairwise import pairwise
from tensors import DEVICE, DTYPES, LAYOUTS, f64, laid_out, target, values

pytest.importorskip("triton")
from vit_fast.kernels import linear as module
from vit_fast.kernels import linear_tiles
from vit_fast.kernels.activations import NAMES
from vit_fast.kernels.linear import launch, linear, linear_ref
from vit_fast.kernels.linear_tiles import launch_config
from vit_fast.kernels.tuning import KNOWN
from vit_fast.ops import torch_ops

pytestmark = pytest.mark.usefixtures("on_device")

CASES = pairwise(
    rows=(1, 7, 50, 196, 197, 257, 577),
    n=(192, 384, 200, 37),
    k=(192, 768, 90),
    activation=(None, *NAMES),
    extras=("", "bias", "bias residual", "bias scale residual", "scale", "residual"),
    kind=("normal", "tiny", "one channel 1000x"),
    layout=LAYOUTS,
    arch=("sm_80", "sm_90"),
    dtype=DTYPES,
)


def arguments(rows, n, k, activation, extras, kind, layout, dtype, lead=()):
    x = laid_out(values(kind, *lead, rows, k).to(dtype), layout)
    w = laid_out((values("normal", n, k, seed=1) / k**0.5).to(dtype), layout)
    b = values("normal", n, seed=2).to(dtype) if "bias" in extras else None
    s = values("normal", n, seed=3).to(dtype) if "scale" in extras else None
    r = (
        laid_out(values("normal", *lead, rows, n, seed=4).to(dtype), layout)
        if "residual" in extras
        else None
    )
    return x, w, b, activation, s, r


def compare(call, x, w, b, activation, s, r):
    ref = linear_ref(*f64(x, w, b), activation, *f64(s, r))
    assert_as_accurate(
        call(x, w, b, activation, s, r), ref, torch_ops().linear(x, w, b, activation, s, r)
    )


@pytest.mark.parametrize("rows, n, k, activation, extras, kind, layout, arch, dtype", CASES)
def test_against_float64(rows, n, k, activation, extras, kind, layout, arch, dtype):
    def call(*args):
        return launch(*args, gpu=target(arch))

    compare(call, *arguments(rows, n, k, activation, extras, kind, layout, dtype))


@pytest.mark.parametrize("rows, n, k", [(197, 1152, 384), (7, 768, 1152)])
def test_wide(rows, n, k):
    compare(
        linear,
        *arguments(rows, n, k, "gelu", "bias residual", "normal", "contiguous", torch.float16),
    )


@pytest.mark.parametrize("descriptors", [True, False])
def test_every_tile(descriptors):
    args = arguments(
        150, 328, 200, "gelu", "bias scale residual", "normal", "contiguous", torch.float16
    )
    gpu = target("sm_90" if descriptors else "sm_80")
    if gpu.bulk_copies != descriptors:
        pytest.skip(f"{gpu.name} has no hardware copies by descriptor")
    K = args[0].shape[1]
    for config in linear_tiles.candidates(150, 328, K, 2, descriptors, gpu):
        compare(lambda *a, c=config, g=gpu: launch(*a, gpu=g, config=c), *args)


def test_more_tiles_than_programs():
    """The persistent grid walks on: 2 multiprocessors, 15 tiles."""
    args = arguments(300, 320, 64, None, "bias", "normal", "contiguous", torch.float16)
    gpu = replace(target("sm_90"), sms=2)
    compare(
        lambda *a: launch(*a, gpu=gpu, config=module.Config(64, 128, 64, 4, 3, slices=2)), *args
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extras", ["", "bias", "scale residual", "bias scale residual"])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_library(activation, extras, dtype):
    """cuBLAS (here PyTorch's own product) and the epilogue as a pass."""
    args = arguments(150, 328, 200, activation, extras, "normal", "rows sliced", dtype)
    compare(lambda *a: launch(*a, config=linear_tiles.LIBRARY), *args)


def test_library_with_a_bias_of_another_dtype():
    x, w, b, *_ = arguments(7, 64, 64, None, "bias", "normal", "contiguous", torch.float16)
    y = launch(x, w, b.float(), config=linear_tiles.LIBRARY)
    assert_as_accurate(y, linear_ref(*f64(x, w, b)), torch_ops().linear(x, w, b))


def test_parts_of_k_are_not_for_linear():
    """Each part would store its tile as the whole."""
    args = arguments(7, 64, 256, None, "bias", "normal", "contiguous", torch.float16)
    with pytest.raises(ValueError, match="K in 2 parts is for linear_norm"):
        launch(*args, config=module.Config(64, 64, 64, 4, 3, splits=2))


def test_mlp():
    """A block's MLP: fc1 with GELU, fc2 with the residual, three dimensions."""
    x, fc1, b1, *_ = arguments(
        50, 384, 96, None, "bias", "normal", "contiguous", torch.float16, lead=(2,)
    )
    _, fc2, b2, *_ = arguments(50, 96, 384, None, "bias", "normal", "contiguous", torch.float16)

    def mlp(op, x, fc1, b1, fc2, b2):
        return op(op(x, fc1, b1, "gelu"), fc2, b2, None, None, x)

    args = (x, fc1, b1, fc2, b2)
    assert_as_accurate(
        mlp(linear, *args), mlp(linear_ref, *f64(*args)), mlp(torch_ops().linear, *args)
    )


def test_class_token_rows_are_not_copied():
    """x[:, :1] is one strided axis of rows; what lies between is never read."""
    x = torch.full((3, 197, 64), float("nan")).half()
    x[:, 0] = values("normal", 3, 64).half()
    w = values("normal", 96, 64, seed=1).half()
    assert module.rows(x[:, :1]).data_ptr() == x.data_ptr()
    y = linear(x[:, :1], w)
    assert_as_accurate(y, linear_ref(*f64(x[:, :1], w)), torch_ops().linear(x[:, :1], w))


def test_nonfinite_values_stay_in_their_rows():
    x, w = values("normal", 4, 64).half(), values("normal", 96, 64, seed=1).half()
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    for activation in NAMES:
        y = linear(x, w, None, activation)
        assert y[1].isnan().all()
        assert y[[0, 3]].isfinite().all()
        assert y[2].isposinf().any()


def test_fp32_bias_and_scale_beside_half():
    x, w, b, _, s, _ = arguments(
        7, 64, 64, None, "bias scale", "normal", "contiguous", torch.float16
    )
    y = linear(x, w, b.float(), None, s.float())
    assert torch.equal(y, linear(x, w, b, None, s))


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_empty_batch(shape):
    assert linear(torch.empty(shape), torch.ones(32, 64)).shape == (*shape[:-1], 32)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": torch.ones(2, 9)}, "x is (2, 9), weight is (4, 8)"),
        ({"bias": torch.ones(5)}, "bias is (5,), expected (4,)"),
        ({"scale": torch.ones(4, 1)}, "scale is (4, 1), expected (4,)"),
        ({"residual": torch.ones(2, 5)}, "residual is (2, 5), expected (2, 4)"),
        ({"weight": torch.ones(4, 8).half()}, "weight is torch.float16, expected torch.float32"),
        ({"activation": "relu"}, "activation is 'relu'; known: gelu, gelu_tanh"),
        ({"x": torch.ones(2, 8).int()}, "x is torch.int32"),
    ],
)
def test_wrong_arguments(change, words):
    arguments = {"x": torch.ones(2, 8), "weight": torch.ones(4, 8)} | change
    arguments = {
        k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()
    }
    with pytest.raises(ValueError) as error:
        linear(**arguments)
    assert words in str(error.value)


def test_rule_fills_the_machine():
    """Large M takes the large tile; one image takes one that gives more multiprocessors work."""
    h200 = KNOWN["sm_90"]
    large = launch_config(256 * 197, 3072, 768, 2, True, h200)
    small = launch_config(197, 768, 768, 2, True, h200)
    assert large.block_m * large.block_n >= 128 * 128
    assert small.block_m * small.block_n <= 64 * 128


def test_tf32_only_when_asked():
    before = torch.backends.cuda.matmul.fp32_precision
    assert module.fp32_precision() == "ieee"
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert module.fp32_precision() == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
