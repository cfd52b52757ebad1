"""Every kernel against float64 at the awkward shapes, by the rule of tests/accuracy.py; each cell is run repeatedly.

Memory that a kernel leaves unwritten is NaN. Runs on the same input that differ are reported: a race, unless the
kernel adds in an order that it does not fix.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import configs, norms
from benchmarks.gpu.cells import Cell
from benchmarks.gpu.programs import DTYPES, inputs, label
from benchmarks.gpu.repeated import kernel_row
from benchmarks.gpu.setting import Setting
from tensors import laid_out, values
from vit_fast.kernels.activations import NAMES
from vit_fast.kernels.tuning import Gpu
from vit_fast.workload import Operation, operations

EPILOGUES = ("bias", "bias residual", "bias scale residual", "", *(f"bias {n}" for n in NAMES))
ACTIVATION_INPUTS = ("normal", "tiny", "negative tail")
OTHER_DTYPES = 3.9  # rank: when speed in the main dtype is known


def at_shape(setting: Setting, op: str, shape: dict, dtype: str, **how: Any) -> dict[str, Any]:
    return kernel_row(setting, op, inputs(setting, op, shape, dtype), **how)


def linear_epilogue(
    setting: Setting,
    size: tuple[int, int, int],
    epilogue: str,
    dtype: str,
    layout: str = "contiguous",
    kind: str = "normal",
    config: Any = None,
) -> dict[str, Any]:
    M, N, K = size
    words = epilogue.split()
    activation = next((w for w in words if w in NAMES), None)
    d = DTYPES[dtype]

    def tensor(*shape: int, seed: int, over: float = 1.0, what: str = "normal") -> Tensor:
        return (values(what, *shape, seed=seed) / over**0.5).to(d)

    x = laid_out(tensor(M, K, seed=0, what=kind), layout)
    w = laid_out(tensor(N, K, seed=1, over=K), layout)
    b = tensor(N, seed=2) if "bias" in words else None
    s = tensor(N, seed=3) if "scale" in words else None
    r = laid_out(tensor(M, N, seed=4), layout) if "residual" in words else None
    return kernel_row(setting, "linear", (x, w, b, activation, s, r), config=config)


def activation(setting: Setting, name: str, kind: str, dtype: str) -> dict[str, Any]:
    """Through linear with an identity for a weight, so that the activation sees these very values."""
    x = values("normal" if kind == "negative tail" else kind, 200, 64)
    if kind == "negative tail":
        x = -3 - 3 * x.abs() / x.abs().max()
    weight = torch.eye(64, dtype=DTYPES[dtype], device=x.device)
    return kernel_row(setting, "linear", (x.to(DTYPES[dtype]), weight, None, name))


def attention(
    setting: Setting, N: int, D: int, dtype: str, layout: str = "packed", kind: str = "normal",
    one_row: bool = False,
) -> dict[str, Any]:  # fmt: skip
    B, H = (16 if one_row else 2), 3
    x = values("normal", B, N, 3, H, D)
    if kind == "large scores":
        x[:, :, :2] *= 8
    if layout == "padded":
        wide = x.new_full((B, N + 3, 3, H, D + 8), float("nan")).to(DTYPES[dtype])
        wide[:, :N, :, :, :D] = x
        q, k, v = wide[:, :N, :, :, :D].unbind(2)
    else:
        q, k, v = x.to(DTYPES[dtype]).unbind(2)
    if layout == "heads first":
        q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
    return kernel_row(setting, "attention", (q[:, :1] if one_row else q, k, v, D**-0.5))


def layer_norm(setting: Setting, N: int, kind: str, layout: str, dtype: str) -> dict[str, Any]:
    d = DTYPES[dtype]
    x = laid_out(values(kind, 199, N).to(d), layout)
    w, b = (values("normal", N, seed=seed).to(d) for seed in (1, 2))
    return kernel_row(setting, "layer_norm", (x, w, b, 1e-6))


def patch_embed(
    setting: Setting, patch: int, channels: int, prefix: int, uint8: bool, layout: str, dtype: str
) -> dict[str, Any]:
    shape = dict(B=2, C=channels, P=patch, G=3, D=setting.widths[0], R=prefix, uint8=uint8)
    image, *rest = inputs(setting, "patch_embed", shape, dtype)
    match layout:
        case "NHWC":
            image = image.contiguous(memory_format=torch.channels_last)
        case "cropped":
            around = 255 if uint8 else float("nan")
            B, C, H, W = image.shape
            wide = image.new_full((B, C, H + 7, W + 5), around)
            wide[:, :, 3 : H + 3, 1 : W + 1] = image
            image = wide[:, :, 3 : H + 3, 1 : W + 1]
    return kernel_row(setting, "patch_embed", (image, *rest))


def cells(setting: Setting, gpu: Gpu) -> Iterator[Cell]:
    """The main model's own shapes in the main dtype first, then what is awkward, then the other dtypes."""

    def cell(name: str, rank: float, run: Callable, params: dict[str, Any]) -> Cell:
        return Cell("correctness", name, run, params, rank, alone=False, ours=True, limit=90)

    batches = setting.groups[0].batches
    for rank, (dtype, batch) in enumerate(itertools.product(setting.dtypes, batches)):
        for operation in _shapes(setting, batch):
            name = label(operation, dtype)
            what = dict(op=operation.op, shape=operation.shape, dtype=dtype)
            yield cell(name, 0.0 if rank < len(batches) else OTHER_DTYPES, at_shape, what)
    for order, dtype in enumerate(setting.dtypes):
        rank = 0.5 if order == 0 else OTHER_DTYPES + order / 100
        awkward = _awkward(setting, gpu, dtype), norms.awkward(setting, gpu, dtype)
        for name, run, params in itertools.chain(*awkward):
            yield cell(f"{name} {dtype}", rank, run, {**params, "dtype": dtype})


def _shapes(setting: Setting, batch: int) -> Iterator[Operation]:
    for uint8 in (False, True):
        for operation in operations(setting.main, batch, uint8=uint8):
            if not uint8 or operation.op == "patch_embed":
                yield operation


def _awkward(
    setting: Setting, gpu: Gpu, dtype: str
) -> Iterator[tuple[str, Callable, dict[str, Any]]]:
    D0, N0, width = setting.head_dims[0], setting.tokens[0], setting.widths[0]
    for N in setting.tokens:
        for D in setting.head_dims:
            yield f"attention N{N} D{D}", attention, dict(N=N, D=D)
    for N, kind in itertools.product(setting.tokens, ("one row", "large scores")):
        how = dict(one_row=True) if kind == "one row" else dict(kind=kind)
        yield f"attention N{N} D{D0} {kind}", attention, dict(N=N, D=D0, **how)
    for layout in ("padded", "heads first"):
        yield f"attention N{N0} D{D0} {layout}", attention, dict(N=N0, D=D0, layout=layout)
    for name, kind in itertools.product(NAMES, ACTIVATION_INPUTS):
        yield f"activation {name} {kind}", activation, dict(name=name, kind=kind)
    size = (N0 + 60, width, width)
    for config in configs.linear(size, dtype, gpu):
        for epilogue in EPILOGUES:
            name = f"linear {configs.words(config)} {epilogue or 'bare'}"
            yield name, linear_epilogue, dict(size=size, epilogue=epilogue, config=config)
    for size in setting.odd_sizes:
        name = "linear {}x{}x{} bias gelu".format(*size)
        yield name, linear_epilogue, dict(size=size, epilogue="bias gelu")
        shape = dict(zip("MNK", size), activation="silu")
        yield "gated {}x{}x{}".format(*size), at_shape, dict(op="gated", shape=shape)
    size = setting.odd_sizes[0]
    for layout in setting.layouts:
        how = dict(size=size, epilogue="bias residual", layout=layout)
        yield f"linear {layout}", linear_epilogue, how
        yield f"layer_norm {layout}", layer_norm, dict(N=width, kind="normal", layout=layout)
    how = dict(size=size, epilogue="bias residual", kind="one channel 1000x")
    yield "linear one channel 1000x", linear_epilogue, how
    for N in setting.widths:
        yield f"layer_norm N{N}", layer_norm, dict(N=N, kind="normal", layout="contiguous")
    for kind in ("tiny", "constant rows", "one channel 1000x"):
        yield f"layer_norm {kind}", layer_norm, dict(N=width, kind=kind, layout="contiguous")
    layouts = ("NCHW", "NHWC", "cropped")
    for (patch, C, R), uint8, layout in itertools.product(setting.patches, (False, True), layouts):
        name = f"patch_embed P{patch} C{C} R{R} {'uint8' if uint8 else 'float'} {layout}"
        how = dict(patch=patch, channels=C, prefix=R, uint8=uint8, layout=layout)
        yield name, patch_embed, how
