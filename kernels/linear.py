"""y = residual + scale * act(x W^T + b): a GEMM with everything elementwise in its epilogue,
accumulated in fp32.

2 M N K operations; x, W and the residual are read once from memory and y is written once (tiles
that share rows of x run side by side and meet in the L2 cache), where separate passes for the bias,
activation, LayerScale and residual would move up to 8 M N elements more. The GELU-MLP of a block is
two of these: fc1 with the activation, fc2 with the residual.

Two kernels. Where the hardware copies boxes by descriptor (compute capability 9.x and 10.x), a
persistent grid walks the tiles and the accumulator is stored in column slices, so that the epilogue
never holds a whole tile twice. Elsewhere, for fp32, and for layouts that a descriptor cannot
express, pipelined pointer loads.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .activations import activation_form, activation_ref
from .launch import COMPILE_OPTIONS, operator
from .operators import check_tensor, refuse, rows
from .tuning import Gpu, cdiv, gpu_of


def linear_ref(x, w, b=None, activation=None, scale=None, residual=None) -> Tensor:
    """The definition; tests evaluate it in float64."""
    y = x @ w.T
    y = y if b is None else y + b
    y = activation_ref(y, activation)
    y = y if scale is None else y * scale
    return y if residual is None else y + residual


@dataclass(frozen=True)
class Config:
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    slices: int = 1  # column slices of the epilogue
    blocks_per_sm: int = 1
    rate: float = 1.0  # an estimate: the share of the matrix rate that this tile sustains

    @property
    def registers(self) -> int:
        """A thread's registers if blocks_per_sm blocks are to share the 65536 of a multiprocessor.

        Left to itself ptxas for sm_100 aims lower, and spills.
        """
        return min(255, 65536 // (32 * self.num_warps * self.blocks_per_sm))


# Each compiles without spills with every epilogue: vit-fast inspect --all
_DESCRIPTOR_TILES = (
    Config(128, 256, 64, 8, 3, slices=2, rate=1.0),
    Config(128, 128, 64, 8, 3, slices=2, blocks_per_sm=2, rate=0.97),
    Config(64, 256, 64, 4, 4, slices=2, rate=0.9),
    Config(64, 128, 64, 4, 4, slices=2, blocks_per_sm=2, rate=0.8),
    Config(64, 64, 64, 4, 4, blocks_per_sm=2, rate=0.55),
)
_POINTER_TILES = (
    Config(128, 128, 64, 8, 3, rate=1.0),
    Config(64, 128, 64, 8, 3, rate=0.9),
    Config(64, 64, 64, 4, 4, rate=0.7),
)
_FP32_TILES = (Config(64, 64, 32, 4, 3, rate=1.0), Config(32, 64, 32, 4, 3, rate=0.7))


def tiles(itemsize: int, descriptors: bool) -> tuple[Config, ...]:
    return _FP32_TILES if itemsize == 4 else _DESCRIPTOR_TILES if descriptors else _POINTER_TILES


@lru_cache
def launch_config(
    M: int, N: int, itemsize: int, descriptors: bool, gpu: Gpu, aligned: bool = True
) -> Config:
    """The tile whose busiest multiprocessor finishes first: rounds of tiles x area / rate. Pure.

    Rows that are not `aligned` to 16 bytes take more addresses, too many for the largest tile.
    """

    def cost(c: Config) -> float:
        count = cdiv(M, c.block_m) * cdiv(N, c.block_n)
        return cdiv(count, gpu.sms) * c.block_m * c.block_n / c.rate

    choice = tiles(itemsize, descriptors)
    return min(choice if aligned else choice[1:], key=cost)


@triton.jit
def _epilogue(acc, offs_n, N, bias_ptr, scale_ptr, ACTIVATION: tl.constexpr):
    # a pointer that is None is a constant: its branch is not compiled
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
    acc = ACTIVATION(acc)
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
    return acc  # [rows, columns] fp32


@triton.jit
def _store_slice(
    acc, y_desc, residual_desc, row, col, N, bias_ptr, scale_ptr, ACTIVATION: tl.constexpr
):
    y = _epilogue(acc, col + tl.arange(0, acc.shape[1]), N, bias_ptr, scale_ptr, ACTIVATION)
    if residual_desc is not None:
        y += residual_desc.load([row, col]).to(tl.float32)
    y_desc.store([row, col], y.to(y_desc.dtype))


@triton.jit
def _linear_descriptor_kernel(
    x_desc,  # [M, K] in boxes [BLOCK_M, BLOCK_K]
    w_desc,  # [N, K] in boxes [BLOCK_N, BLOCK_K]
    y_desc,  # [M, N] in boxes [BLOCK_M, BLOCK_N / SLICES]
    residual_desc,  # the same, or None
    bias_ptr,  # [N] or None
    scale_ptr,  # [N] or None
    M,
    N,
    K,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
):
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles = tl.cdiv(M, BLOCK_M) * tiles_n
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = (tile // tiles_n) * BLOCK_M
        col = (tile % tiles_n) * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            # boxes that reach past M, N or K arrive with zeros
            acc = tl.dot(x_desc.load([row, k]), w_desc.load([col, k]).T, acc)
        if SLICES == 1:
            _store_slice(acc, y_desc, residual_desc, row, col, N, bias_ptr, scale_ptr, ACTIVATION)
        else:
            halves = tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
            left, right = tl.split(halves)
            _store_slice(left, y_desc, residual_desc, row, col, N, bias_ptr, scale_ptr, ACTIVATION)
            _store_slice(
                right, y_desc, residual_desc, row, col + BLOCK_N // 2, N, bias_ptr, scale_ptr, ACTIVATION
            )  # fmt: skip


@triton.jit
def _linear_pointer_kernel(
    x_ptr,  # [M, K], rows stride_xm apart, last axis contiguous
    w_ptr,  # [N, K], rows stride_wn apart, last axis contiguous
    y_ptr,  # [M, N], contiguous
    residual_ptr,  # [M, N], rows stride_rm apart, or None
    bias_ptr,  # [N] or None
    scale_ptr,  # [N] or None
    M,
    N,
    K,
    stride_xm,
    stride_wn,
    stride_rm,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles_n = tl.cdiv(N, BLOCK_N)
    pid_m = tl.program_id(0) // tiles_n
    pid_n = tl.program_id(0) % tiles_n
    offs_m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # rows past the end read the last row again and are not stored
    x_ptrs = x_ptr + tl.minimum(offs_m, M - 1)[:, None] * stride_xm + offs_k[None, :]
    w_ptrs = w_ptr + tl.minimum(offs_n, N - 1).to(tl.int64)[None, :] * stride_wn + offs_k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs)
            w = tl.load(w_ptrs)
        else:
            x = tl.load(x_ptrs, mask=offs_k[None, :] < K - k, other=0.0)
            w = tl.load(w_ptrs, mask=offs_k[:, None] < K - k, other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K
    y = _epilogue(acc, offs_n, N, bias_ptr, scale_ptr, ACTIVATION)
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    if residual_ptr is not None:
        r_ptrs = residual_ptr + offs_m[:, None] * stride_rm + offs_n[None, :]
        y += tl.load(r_ptrs, mask=mask, other=0.0).to(tl.float32)
    y_ptrs = y_ptr + offs_m[:, None] * N + offs_n[None, :]
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=mask)


def describable(*matrices: Tensor | None) -> bool:
    """Whether a descriptor can express each [rows, columns]: 16-byte aligned base and rows, half
    precision.
    """
    return all(
        t.element_size() == 2 and t.data_ptr() % 16 == 0
        and t.stride(0) % 8 == 0 and t.stride(0) > 0 and t.stride(1) == 1
        for t in matrices
        if t is not None
    )  # fmt: skip


def fp32_precision() -> str:
    """ "ieee", or "tf32" when the user has asked PyTorch for TF32 in its matrix products."""
    settings = torch.backends.cuda.matmul
    if hasattr(settings, "fp32_precision"):  # torch >= 2.9
        return "tf32" if settings.fp32_precision == "tf32" else "ieee"
    return "tf32" if settings.allow_tf32 else "ieee"


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    gpu: Gpu | None = None,
    config: Config | None = None,
) -> Tensor:
    """x [..., K], weight [N, K], bias [N], scale [N], residual [..., N] -> [..., N] in x.dtype.

    x, weight and residual share a dtype; bias and scale may be of another one. ValueError names
    what does not fit. `gpu` and `config` override the device's own, for tests and for compiling
    without one.
    """
    if x.dim() == 0 or weight.dim() != 2 or not x.shape[-1] == weight.shape[1] > 0:
        refuse(
            "linear",
            f"x is {tuple(x.shape)}, weight is {tuple(weight.shape)}: expected [..., K], [N, K]",
        )
    N, K = weight.shape
    shape = (*x.shape[:-1], N)
    check_tensor("linear", "x", x, x.shape, x.device)
    check_tensor("linear", "weight", weight, (N, K), x.device, x.dtype)
    check_tensor("linear", "bias", bias, (N,), x.device)
    check_tensor("linear", "scale", scale, (N,), x.device)
    check_tensor("linear", "residual", residual, shape, x.device, x.dtype)

    y = torch.empty(shape, dtype=x.dtype, device=x.device)
    x2, w, r2 = rows(x), rows(weight), None if residual is None else rows(residual)
    b = None if bias is None else bias.contiguous()
    scale = None if scale is None else scale.contiguous()
    M = x2.shape[0]
    if M == 0 or N == 0:
        return y
    gpu = gpu or gpu_of(x.device)
    y2 = y.view(M, N)
    descriptors = gpu.bulk_copies and describable(x2, w, y2, r2)
    aligned = x2.stride(0) % 8 == 0 and w.stride(0) % 8 == 0
    c = config or launch_config(M, N, x.element_size(), descriptors, gpu, aligned)
    act = activation_form(activation, x.dtype)
    count = cdiv(M, c.block_m) * cdiv(N, c.block_n)
    shared = dict(BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_K=c.block_k, ACTIVATION=act)
    options = dict(num_warps=c.num_warps, num_stages=c.num_stages, **COMPILE_OPTIONS)
    if descriptors:
        out_box = [c.block_m, c.block_n // c.slices]
        _linear_descriptor_kernel[(min(count, gpu.sms * c.blocks_per_sm),)](
            TensorDescriptor.from_tensor(x2, [c.block_m, c.block_k]),
            TensorDescriptor.from_tensor(w, [c.block_n, c.block_k]),
            TensorDescriptor.from_tensor(y2, out_box),
            None if r2 is None else TensorDescriptor.from_tensor(r2, out_box),
            b, scale, M, N, K, SLICES=c.slices, maxnreg=c.registers, **shared, **options,
        )  # fmt: skip
    else:
        _linear_pointer_kernel[(count,)](
            x2, w, y2, r2, b, scale, M, N, K, x2.stride(0), w.stride(0), 0 if r2 is None else r2.stride(0),
            PRECISION=fp32_precision(), EVEN_K=K % c.block_k == 0, **shared, **options,
        )  # fmt: skip
    return y


def _fake(x, weight, bias=None, activation=None, scale=None, residual=None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


linear = operator(
    "linear(Tensor x, Tensor weight, Tensor? bias=None, str? activation=None, Tensor? scale=None,"
    " Tensor? residual=None) -> Tensor",
    launch,
    _fake,
)
