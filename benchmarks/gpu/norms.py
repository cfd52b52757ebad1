"""Products with LayerNorm behind or before them, checked: K split into partial sums; LayerNorm folded in."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from benchmarks.gpu import configs
from benchmarks.gpu.programs import DTYPES, check, doubled, judge, worst
from benchmarks.gpu.repeated import kernel_row, repeated
from benchmarks.gpu.setting import Setting
from tensors import values
from vit_fast.kernels import linear_tiles
from vit_fast.kernels.folding import row_statistics
from vit_fast.kernels.layer_norm import layer_norm_ref
from vit_fast.kernels.linear import linear_ref
from vit_fast.kernels.linear_folded import launch_folded, launch_statistics
from vit_fast.kernels.tuning import Gpu
from vit_fast.ops import torch_ops
from vit_fast.weights import fold_norm_bias, fold_norm_weight

EPS = 1e-6
MEANS = (0.0, 8.0, 31.0)  # of a row, in units of its spread


def linear_norm(
    setting: Setting, size: tuple[int, int, int], dtype: str, config: Any = None
) -> dict[str, Any]:
    M, N, K = size
    d = DTYPES[dtype]
    x, w = values("normal", M, K).to(d), (values("normal", N, K, seed=1) / K**0.5).to(d)
    b, scale, g, h = (values("normal", N, seed=seed).to(d) for seed in (2, 3, 4, 5))
    r = values("normal", M, N, seed=6).to(d)
    return kernel_row(setting, "linear_norm", (x, w, b, scale, r, g, h, EPS), config=config)


def statistics(
    setting: Setting, size: tuple[int, int, int], dtype: str, config: Any = None
) -> dict[str, Any]:
    """One product leaves the statistics of its rows, the next one reads them."""
    M, N, K = size
    d = DTYPES[dtype]
    x, w = values("normal", M, K).to(d), (values("normal", N, K, seed=1) / K**0.5).to(d)
    r, w2 = values("normal", M, N, seed=2).to(d), (values("normal", K, N, seed=3) / N**0.5).to(d)
    b, g, h = (values("normal", N, seed=seed).to(d) for seed in (4, 5, 6))
    weights = _folded(w2, None, g, h)

    def run() -> tuple[Tensor, Tensor]:
        y, stats = launch_statistics(x, w, b, None, r, config=config)
        return y, launch_folded(y, stats, *weights, EPS, "gelu", config=config)

    def judged(found: tuple[Tensor, Tensor]) -> dict[str, Any]:
        first = check("linear", (x, w, b, None, None, r), found[0])
        return worst([first, _judged(found[1], found[0], w2, None, g, h, "gelu")])

    return repeated(setting, run, judged)


def folded(
    setting: Setting, size: tuple[int, int, int], mean: float, activation: str | None, dtype: str
) -> dict[str, Any]:
    M, N, K = size
    d = DTYPES[dtype]
    x, w = (mean + values("normal", M, K)).to(d), (values("normal", N, K, seed=1) / K**0.5).to(d)
    b, g, h = (values("normal", n, seed=seed).to(d) for n, seed in ((N, 2), (K, 3), (K, 4)))
    weights = _folded(w, b, g, h)
    return repeated(
        setting,
        lambda: launch_folded(x, row_statistics(x), *weights, EPS, activation),
        lambda y: _judged(y, x, w, b, g, h, activation),
    )


def _folded(w: Tensor, b: Tensor | None, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weight = fold_norm_weight([w], g)
    return weight, weight.float().sum(1), fold_norm_bias([w], [] if b is None else [b], h)


def _judged(
    y: Tensor, x: Tensor, w: Tensor, b: Tensor | None, g: Tensor, h: Tensor, activation: str | None
) -> dict[str, Any]:
    """y as act(LayerNorm(x) w^T + b)."""
    ops, exact = torch_ops(), doubled((x, g, h, w, b))
    ref = linear_ref(layer_norm_ref(*exact[:3], EPS), *exact[3:], activation)
    return judge(y, ref, ops.linear(ops.layer_norm(x, g, h, EPS), w, b, activation))


def awkward(
    setting: Setting, gpu: Gpu, dtype: str
) -> Iterator[tuple[str, Callable, dict[str, Any]]]:
    """(name, function, its parameters) of each check."""
    itemsize, width = configs.ITEMSIZE[dtype], setting.widths[0]
    descriptors = gpu.bulk_copies and itemsize == 2
    size = (setting.tokens[0] + 60, width, width)
    for config in linear_tiles.split_candidates(width, itemsize, descriptors):
        name = f"linear_norm {configs.words(config)}"
        yield name, linear_norm, dict(size=size, config=config)
    for odd in setting.odd_sizes:
        yield "linear_norm {}x{}x{}".format(*odd), linear_norm, dict(size=odd)
    if dtype == "fp32":
        return  # never folded: kernels/folding.py
    for config in linear_tiles.tiles(itemsize, descriptors):
        yield f"folded {configs.words(config)}", statistics, dict(size=size, config=config)
    for odd in setting.odd_sizes:
        yield "folded {}x{}x{}".format(*odd), statistics, dict(size=odd)
    for mean, activation in itertools.product(MEANS, (None, "gelu", "gelu_tanh")):
        name = f"folded mean {mean:g} {activation or 'bare'}"
        yield name, folded, dict(size=size, mean=mean, activation=activation)
