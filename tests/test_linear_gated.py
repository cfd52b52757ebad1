"""The gated linear layer against its definition in float64, through descriptors and through pointers."""

from dataclasses import replace

import pytest
import torch

from accuracy import assert_as_accurate
from pairwise import pairwise
from refusals import refused
from tensors import CUDA, DEVICE, DTYPES, LAYOUTS, VALUES, f64, laid_out, target, values

pytest.importorskip("triton")
from vit_fast import cpu_ops, triton_ops
from vit_fast.kernels import linear_gated as module
from vit_fast.kernels import linear_tiles
from vit_fast.kernels.linear_gated import launch, launch_config, linear_gated, linear_gated_ref
from vit_fast.kernels.linear_tiles import Config
from vit_fast.kernels.tuning import KNOWN
from vit_fast.ops import torch_ops
from vit_fast.spec import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("on_device")

CASES = pairwise(
    rows=(1, 7, 50, 197),
    f=(96, 100, 130, 136),
    k=(64, 72, 200),
    activation=ACTIVATIONS,
    biases=("", "gate", "up", "gate up"),
    weights=("of one tensor", "apart"),
    kind=VALUES,
    layout=LAYOUTS,
    arch=("sm_80", "sm_90"),
    dtype=DTYPES,
)


def arguments(
    rows, f, k, activation, biases="gate up", weights="of one tensor", kind="normal",
    layout="contiguous", dtype=torch.float16, lead=(),
):  # fmt: skip
    x = laid_out(values(kind, *lead, rows, k).to(dtype), layout)
    w = values("normal", 2 * f, k, seed=1) / k**0.5
    if kind == "one channel 1000x":
        w[f:] /= 256  # the product stays within fp16
    gate, up = w.to(dtype).split(f)
    if weights == "apart":
        gate, up = laid_out(gate, layout), laid_out(up, "rows sliced")
    gate_bias, up_bias = (values("normal", f, seed=seed).to(dtype) for seed in (2, 3))
    return (
        x, gate, up, gate_bias if "gate" in biases else None, up_bias if "up" in biases else None,
        activation,
    )  # fmt: skip


def in_pytorch(x, gate, up, gate_bias, up_bias, activation):
    """What a layer does where Ops.gated is None."""
    linear = torch_ops().linear
    return linear(x, gate, gate_bias, activation) * linear(x, up, up_bias)


def compare(call, *args):
    ref = linear_gated_ref(*f64(*args[:5]), args[5])
    assert_as_accurate(call(*args), ref, in_pytorch(*args))


@pytest.mark.parametrize(
    "rows, f, k, activation, biases, weights, kind, layout, arch, dtype", CASES
)
def test_against_float64(rows, f, k, activation, biases, weights, kind, layout, arch, dtype):
    args = arguments(rows, f, k, activation, biases, weights, kind, layout, dtype)
    compare(lambda *a: launch(*a, gpu=target(arch)), *args)


def test_the_definition():
    """Shazeer 2020, equation 6, one value by hand."""
    x, gate, up = torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor([[5.0]])
    y = linear_gated_ref(x, gate, up, torch.tensor([1.0]), torch.tensor([-4.0]), "silu")
    assert y.item() == pytest.approx(7 / (1 + torch.exp(torch.tensor(-7.0)).item()) * 6)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_every_tile(arch):
    gpu = target(arch)
    if gpu.bulk_copies != (arch == "sm_90"):
        pytest.skip(f"{gpu.name} has no hardware copies by descriptor")
    args = arguments(150, 168, 200, "silu")
    for config in linear_tiles.tiles(2, gpu.bulk_copies):
        compare(lambda *a, c=config: launch(*a, gpu=gpu, config=c), *args)


def test_more_tiles_than_programs():
    """The persistent grid walks on: 2 multiprocessors, 15 tiles."""
    gpu, config = replace(target("sm_90"), sms=2), Config(64, 128, 64, 4, 3)
    args = arguments(300, 136, 72, "gelu")
    compare(lambda *a: launch(*a, gpu=gpu, config=config), *args)


def kernels_of(monkeypatch, arch, *args):
    """Which kernels `launch` chose, and the tensors that they were given."""
    chosen = []
    for name in ("gated_descriptor_kernel", "gated_pointer_kernel"):
        kernel = getattr(module, name)

        class Seen:
            def __getitem__(self, grid, name=name, kernel=kernel):
                return lambda *a, **k: (chosen.append((name, a)), kernel[grid](*a, **k))

        monkeypatch.setattr(module, name, Seen())
    compare(lambda *a: launch(*a, gpu=KNOWN[arch]), *args)
    return chosen


@pytest.mark.skipif(CUDA, reason="both kernels run on one machine in the interpreter alone")
@pytest.mark.parametrize(
    "arch, f, dtype, name",
    [
        ("sm_90", 96, torch.float16, "descriptor"),
        ("sm_90", 100, torch.float16, "pointer"),  # rows of 200 bytes
        ("sm_90", 96, torch.float32, "pointer"),
        ("sm_80", 96, torch.float16, "pointer"),
    ],
)
def test_halves_of_one_tensor_are_not_copied(monkeypatch, arch, f, dtype, name):
    args = arguments(7, f, 64, "silu", dtype=dtype)
    ((kernel, operands),) = kernels_of(monkeypatch, arch, *args)
    assert kernel == f"gated_{name}_kernel"
    given = [getattr(t, "base", t) for t in operands]
    for t in args[:5]:
        assert any(isinstance(g, torch.Tensor) and g.data_ptr() == t.data_ptr() for g in given)


def test_three_dimensions_and_class_token_rows():
    """x[:, :1] is one strided axis of rows; what lies between is never read."""
    x, *rest = arguments(50, 96, 64, "silu", lead=(3,))
    compare(linear_gated, x, *rest)
    x[:, 1:] = float("nan")
    compare(linear_gated, x[:, :1], *rest)


def test_nonfinite_values_stay_in_their_rows():
    x, *rest = arguments(4, 96, 64, "silu")
    x[1, 3] = float("nan")
    y = linear_gated(x, *rest)
    assert y[1].isnan().all()
    assert y[[0, 2, 3]].isfinite().all()


def test_fp32_biases_beside_half():
    args = arguments(7, 96, 64, "silu")
    *weights, gate_bias, up_bias, activation = args
    y = linear_gated(*weights, gate_bias.float(), up_bias.float(), activation)
    assert torch.equal(y, linear_gated(*args))


def test_biases_with_gaps():
    x, gate, up, *biases, activation = arguments(7, 96, 64, "silu")
    biases = (torch.stack((b, b * float("nan")), 1)[:, 0] for b in biases)
    compare(linear_gated, x, gate, up, *biases, activation)


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)])
def test_empty_batch(shape):
    w = torch.ones(32, 8)
    assert linear_gated(torch.ones(shape), w, w, None, None, "silu").shape == (*shape[:-1], 32)
    with pytest.raises(ValueError, match="activation is 'relu'"):
        linear_gated(torch.ones(shape), w, w, None, None, "relu")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": torch.ones(2, 9)}, "x is (2, 9), gate is (4, 8)"),
        ({"x": torch.tensor(1.0)}, "x is (), gate is (4, 8)"),
        ({"gate": torch.ones(8)}, "gate is (8,)"),
        ({"up": torch.ones(5, 8)}, "up is (5, 8), expected (4, 8)"),
        ({"gate_bias": torch.ones(8)}, "gate_bias is (8,), expected (4,)"),
        ({"up_bias": torch.ones(4, 1)}, "up_bias is (4, 1), expected (4,)"),
        ({"gate": torch.ones(4, 8).half()}, "gate is torch.float16, expected torch.float32"),
        ({"up": torch.ones(4, 8).half()}, "up is torch.float16, expected torch.float32"),
        ({"gate_bias": torch.ones(4).double()}, "gate_bias is torch.float64"),
        ({"up_bias": torch.ones(4).int()}, "up_bias is torch.int32"),
        ({"x": torch.ones(2, 8).int()}, "x is torch.int32"),
        ({"activation": "relu"}, "activation is 'relu'; known: gelu, gelu_tanh"),
    ],
)
def test_wrong_arguments(change, words):
    w = torch.ones(4, 8)
    given = {"x": torch.ones(2, 8), "gate": w, "up": w, "gate_bias": None, "up_bias": None}
    given |= {"activation": "silu"} | change
    given = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with pytest.raises(ValueError) as error:
        linear_gated(**given)
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["gate", "up", "gate_bias", "up_bias"])
def test_devices_must_agree(name):
    w, b = torch.ones(4, 8), torch.ones(4)
    given = {"gate": w, "up": w, "gate_bias": b, "up_bias": b}
    given[name] = given[name].to("meta")
    with refused(ValueError, f"{name} is on meta, the first argument on c"):
        launch(torch.ones(2, 8), **given, activation="silu")


@pytest.mark.parametrize(
    "config, words",
    [
        (linear_tiles.LIBRARY, "cuBLAS has no product of two"),
        (Config(64, 64, 64, 4, 3, splits=2), "K in 2 parts"),
        (Config(64, 64, 64, 4, 3, flatten=True), "serialise wgmma"),
        (Config(64, 16, 64, 4, 3), "16 columns are too few"),
    ],
)
def test_configs_that_are_not_for_it(config, words):
    with refused(ValueError, "vit_fast.linear_gated", words):
        launch(*arguments(7, 96, 64, "silu"), config=config)


def test_the_rule_is_that_of_a_product_twice_as_wide():
    h200 = KNOWN["sm_90"]
    for M, F, K in ((257 * 64, 4096, 1536), (201, 5120, 1280), (1025, 8192, 4096)):
        assert launch_config(M, F, K, 2, True, h200) == linear_tiles.launch_config(
            M, 2 * F, K, 2, True, h200
        )
    assert launch_config(197, 100, 90, 2, False, h200, aligned=False).block_k == 32
    large, small = (launch_config(m, 4096, 1536, 2, True, h200) for m in (257 * 64, 50))
    assert large.block_m * large.block_n > small.block_m * small.block_n


def test_which_table_has_it():
    assert triton_ops().gated is triton_ops(folded=True).gated is linear_gated
    assert torch_ops().gated is None
    assert cpu_ops().gated is None
