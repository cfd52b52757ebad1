"""The time of a model: the tiles that the kernels' own rules choose, at the times of costs.py, summed. Pure.

To each kernel comes one launch gap. Beside the sum the floor: FLOPs at the peak that a large GEMM reaches; for a
kernel the larger of that and its bytes at copy bandwidth. Launches that overlap are left out.
"""

from dataclasses import dataclass

import torch
import triton

from benchmarks.costs import (
    FILL_US,
    MOST_BLOCKS,
    Program,
    Tile,
    attention_us,
    copy_us,
    gemm_us,
    l2_us,
    longest,
    warm,
    wave_efficiency,
)
from benchmarks.hardware import DTYPES, Hardware
from vit_fast.kernels import attention, linear_norm, linear_tiles, patch_embed
from vit_fast.kernels.tuning import Gpu, cdiv
from vit_fast.workload import Model, Operation, operations

_TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Kernel:
    """One launch of an operation, `count` times in a forward pass."""

    name: str
    count: int
    tile: str
    waves: float  # tiles / multiprocessors; 0 where the kernel is bound by bytes alone
    efficiency: float  # useful share of the matrix work that the rounds have room for
    bound: str  # what takes longest: matrix, feed (L2), epilogue, softmax, memory, fill
    time_us: float  # without the launch gap
    floor_us: float


def gpu_record(hw: Hardware) -> Gpu:
    """What the kernels' rules may know of this GPU."""
    return Gpu(hw.name, hw.arch, hw.sms, hw.smem_block_kb << 10)


def linear_tile(M: int, N: int, K: int, dtype: str, normed: bool, hw: Hardware) -> Tile:
    """linear's own rule, or linear_norm's where a LayerNorm is behind it. The one place that asks."""
    gpu, kind = gpu_record(hw), _TORCH[dtype]
    descriptors = gpu.bulk_copies and kind.itemsize == 2
    if normed:
        c = linear_norm.config_for(M, N, K, kind, descriptors, True, gpu)
    else:
        c = linear_tiles.launch_config(M, N, K, kind.itemsize, descriptors, gpu)
    return Tile(c.block_m, c.block_n, c.block_k, c.blocks_per_sm, c.splits)


def patch_tile(M: int, D: int, itemsize: int, hw: Hardware) -> Tile:
    """patch_embed's own rule; as many blocks a multiprocessor as its shared memory holds."""
    c = patch_embed.launch_config(M, D, itemsize, gpu_record(hw))
    m, n, k = c["BLOCK_M"], c["BLOCK_N"], c["BLOCK_K"]
    held = (hw.smem_sm_kb << 10) // (c["num_stages"] * (m + n) * k * itemsize)
    return Tile(m, n, k, min(MOST_BLOCKS, max(1, held)))


def attention_program(Nq: int, N: int, D: int, itemsize: int, hw: Hardware) -> Program:
    """attention's own rule, and what its chunks, tail and parts pad the work to. The one place that asks it."""
    c = attention.launch_config(Nq, N, D, itemsize, gpu_record(hw))
    lanes = sum(attention.head_parts(D, c.widest))
    if c.chunks[0]:
        return Program(c.block_m, sum(c.chunks), lanes)
    tail = N % c.block_n
    padded = max(16, triton.next_power_of_2(tail)) if tail else 0
    return Program(c.block_m, N - tail + padded, lanes)


def _kernel(o: Operation, hw: Hardware, dtype: str, tile, waves, efficiency, bound, time) -> Kernel:
    floor = max(o.flops / (hw.peak_tflops(dtype) * 1e6), copy_us(hw, o.bytes))
    return Kernel(o.name, o.count, str(tile), waves, efficiency, bound, time, floor)


def _product(o: Operation, hw: Hardware, dtype: str, M, N, tile: Tile, bound, time) -> Kernel:
    waves, useful = tile.count(M, N) / hw.sms, wave_efficiency(M, N, tile, hw.sms)
    return _kernel(o, hw, dtype, tile, waves, useful, bound, time)


def _linear(o: Operation, hw: Hardware, dtype: str) -> Kernel:
    M, N, K = o.shape["M"], o.shape["N"], o.shape["K"]
    # in a block every product with a residual has a LayerNorm behind it
    tile = linear_tile(M, N, K, dtype, o.shape["residual"], hw)
    kind = "activation" if o.shape["activation"] else "residual" if o.shape["residual"] else "plain"
    cold = N * K * DTYPES[dtype] if warm(hw, o.bytes) else o.bytes
    time, bound = gemm_us(hw, dtype, M, N, K, tile, kind, cold)
    return _product(o, hw, dtype, M, N, tile, bound, time)


def _patch_embed(o: Operation, hw: Hardware, dtype: str) -> Kernel:
    s = o.shape
    M, N, K = s["B"] * s["G"] ** 2, s["D"], s["C"] * s["P"] ** 2
    tile = patch_tile(M, N, DTYPES[dtype], hw)
    time, bound = gemm_us(hw, dtype, M, N, K, tile, "residual", o.bytes)  # pixels are cold
    return _product(o, hw, dtype, M, N, tile, bound, time)


def _attention(o: Operation, hw: Hardware, dtype: str) -> Kernel:
    B, H, Nq, N, D = (o.shape[i] for i in ("B", "H", "Nq", "N", "D"))
    program = attention_program(Nq, N, D, DTYPES[dtype], hw)
    memory = 0.0 if warm(hw, o.bytes) else o.bytes
    time, bound = attention_us(hw, dtype, B, H, Nq, D, program, memory)
    waves = cdiv(Nq, program.block_m) * B * H / hw.sms
    room = cdiv(Nq, program.block_m) * program.block_m * program.keys * program.lanes
    efficiency = Nq * N * D / room * waves / cdiv(cdiv(Nq, program.block_m) * B * H, hw.sms)
    return _kernel(o, hw, dtype, program, waves, efficiency, bound, time)


def _layer_norm(o: Operation, hw: Hardware, dtype: str) -> Kernel:
    moving = l2_us(hw, o.bytes) if warm(hw, o.bytes) else copy_us(hw, o.bytes)
    time, bound = longest(FILL_US, 0.0, moving, {})
    return _kernel(o, hw, dtype, "rows", 0.0, 1.0, bound, time)


_PREDICT = {
    "linear": _linear,
    "patch_embed": _patch_embed,
    "attention": _attention,
    "layer_norm": _layer_norm,
}


@dataclass(frozen=True)
class Forecast:
    """A forward pass of `batch` images. Times in microseconds."""

    hw: Hardware
    model: Model
    batch: int
    dtype: str
    flops: float
    kernels: tuple[Kernel, ...]

    @property
    def launches(self) -> int:
        return sum(k.count for k in self.kernels)

    @property
    def gaps_us(self) -> float:
        return self.launches * self.hw.launch_gap_us

    @property
    def time_us(self) -> float:
        return sum(k.count * k.time_us for k in self.kernels) + self.gaps_us

    @property
    def floor_us(self) -> float:
        """Its FLOPs at the peak that a large GEMM reaches."""
        return self.flops / (self.hw.peak_tflops(self.dtype) * 1e6)

    @property
    def kernels_floor_us(self) -> float:
        """Each kernel at the larger of its FLOPs at the peak and its bytes at copy bandwidth."""
        return sum(k.count * k.floor_us for k in self.kernels)

    @property
    def images_per_s(self) -> float:
        return self.batch / self.time_us * 1e6

    def share(self, kernel: Kernel) -> float:
        """Of the time, launch gaps included."""
        return kernel.count * (kernel.time_us + self.hw.launch_gap_us) / self.time_us


def forecast(hw: Hardware, model: Model, batch: int, dtype: str = "bf16") -> Forecast:
    """Predicts a forward pass that returns all tokens. ValueError for a batch below 1 or an unknown dtype."""
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected at least 1")
    hw.peak_tflops(dtype)
    ops = tuple(operations(model, batch, DTYPES[dtype]))
    kernels = tuple(_PREDICT[o.op](o, hw, dtype) for o in ops)
    return Forecast(hw, model, batch, dtype, sum(o.flops * o.count for o in ops), kernels)
