"""The two products of a block without LayerNorm passes: one leaves its rows' statistics, the next one is given them.

folding.py has the maths. A block is then five launches: qkv, attention, proj, fc1, fc2.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .folding import PART
from .launch import operator
from .linear import Folded, check, config_for, describable, epilogue_name, run
from .linear_tiles import Config
from .operators import check_tensor, refuse, rows
from .tuning import Gpu, cdiv, gpu_of


def own_config(
    M: int, N: int, K: int, dtype: torch.dtype, epilogue: str, descriptors: bool, aligned: bool, gpu: Gpu
) -> Config:  # fmt: skip
    """As `linear` would choose, but a kernel of ours: cuBLAS knows nothing of statistics."""
    c = config_for(M, N, K, dtype, epilogue, descriptors, aligned, gpu)
    if c.library:
        c = config_for(M, N, K, dtype, "", descriptors, aligned, gpu)
    return _with_room(c, gpu)


def _with_room(c: Config, gpu: Gpu) -> Config:
    """On sm_100 statistics take more registers than two blocks of 128 rows have."""
    crowded = c.blocks_per_sm > 1 and c.block_m == 128 and gpu.arch // 10 == 10
    return replace(c, blocks_per_sm=1) if crowded else c


def _own_tile(x: Tensor, w: Tensor, epilogue: str, gpu: Gpu, *others: Tensor | None) -> Config:
    descriptors = gpu.bulk_copies and describable(x, w, *others)
    aligned = x.stride(0) % 8 == 0 and w.stride(0) % 8 == 0
    return own_config(len(x), *w.shape, x.dtype, epilogue, descriptors, aligned, gpu)


def launch_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    gpu: Gpu | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear`'s arguments -> y [..., N], and the statistics [M, N / 64, 2] of y's rows, for `linear_folded`."""
    check("linear_statistics", x, weight, bias, scale, residual)
    N = len(weight)
    y = torch.empty((*x.shape[:-1], N), dtype=x.dtype, device=x.device)
    M = y.numel() // max(1, N)
    stats = torch.empty((M, cdiv(N, PART), 2), dtype=torch.float32, device=x.device)
    if y.numel():
        gpu = gpu or gpu_of(x.device)
        x2, w, r2 = rows(x), rows(weight), None if residual is None else rows(residual)
        epilogue = epilogue_name(None, scale, residual)
        c = _with_room(config or _own_tile(x2, w, epilogue, gpu, y.view(M, N), r2), gpu)
        run(x2, w, bias, None, scale, r2, y, y_stats=stats, gpu=gpu, config=c)
    return y, stats


def launch_folded(
    x: Tensor,
    stats: Tensor,
    weight: Tensor,
    column_sums: Tensor,
    bias: Tensor,
    eps: float,
    activation: str | None = None,
    gpu: Gpu | None = None,
    config: Config | None = None,
) -> Tensor:
    """act(LayerNorm(x) W^T + b): x [..., K], its stats [M, K / 64, 2], and W', s and b' as folding.py defines them.

    weight [N, K] in x.dtype, column_sums and bias [N] in fp32 -> [..., N] in x.dtype.
    """
    op = "linear_folded"
    check(op, x, weight, bias)
    if x.dtype == torch.float32:
        refuse(op, "x is torch.float32, expected torch.float16 or torch.bfloat16: see folding.py")
    N, K = weight.shape
    M = x.numel() // K
    check_tensor(op, "stats", stats, (M, cdiv(K, PART), 2), x.device, torch.float32)
    check_tensor(op, "column_sums", column_sums, (N,), x.device, torch.float32)
    y = torch.empty((*x.shape[:-1], N), dtype=x.dtype, device=x.device)
    if y.numel():
        gpu = gpu or gpu_of(x.device)
        x2, w = rows(x), rows(weight)
        c = _with_room(config or _own_tile(x2, w, activation or "bias", gpu, y.view(M, N)), gpu)
        folded = Folded(stats.contiguous(), column_sums.contiguous(), eps)
        run(x2, w, bias, activation, None, None, y, folded=folded, gpu=gpu, config=c)
    return y


def _fake_statistics(x, weight, bias, scale, residual):
    y = x.new_empty((*x.shape[:-1], weight.shape[0]))
    stats = (x.numel() // x.shape[-1], cdiv(len(weight), PART), 2)
    return y, x.new_empty(stats, dtype=torch.float32)


linear_statistics = operator(
    "linear_statistics(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? residual) -> (Tensor, Tensor)",
    launch_statistics,
    _fake_statistics,
)

linear_folded = operator(
    "linear_folded(Tensor x, Tensor stats, Tensor weight, Tensor column_sums, Tensor bias, float eps,"
    " str? activation=None) -> Tensor",
    launch_folded,
    lambda x, stats, weight, column_sums, bias, eps, activation=None: x.new_empty(
        (*x.shape[:-1], weight.shape[0])
    ),
)
