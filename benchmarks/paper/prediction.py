"""The time of a model: the tiles that the kernels would run in, at the times of costs.py, summed. Pure.

To each launch comes one gap. Beside the sum the floor: FLOPs at the peak that a large GEMM reaches; for a
kernel the larger of that and its bytes at copy bandwidth. A model can be taken as it is with LayerNorm folded into
the products behind it, with dependent launches, or both.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vit_fast.kernels.tuning import cdiv
from vit_fast.workload import Model, Operation, operations

from ..hardware import DTYPES, Hardware
from .chosen import (
    attention_program,
    by_descriptors,
    gated_tile,
    linear_tile,
    patch_tile,
)
from .costs import (
    DEPENDENT_FETCH_US,
    DEPENDENT_GAP,
    FILL_US,
    Tile,
    attention_us,
    copy_us,
    gemm_us,
    pass_us,
    statistics_bytes,
    warm,
    wave_efficiency,
)


@dataclass(frozen=True)
class Way:
    """How a model is run. `triton_ops(folded=True)`; kernels/dependent.py."""

    folded: bool = False
    dependent: bool = False

    def __str__(self) -> str:
        """As the GPU program names its variants."""
        words = ", ".join(w for w, on in (("folded", self.folded), ("pdl", self.dependent)) if on)
        return words or "neither"


WAYS = (Way(), Way(dependent=True), Way(folded=True), Way(folded=True, dependent=True))


@dataclass(frozen=True)
class Kernel:
    """One operation, `count` times in a forward pass, each `launches` launches."""

    name: str
    count: int
    tile: str
    waves: float  # tiles / multiprocessors; 0 where the kernel is bound by bytes alone
    efficiency: float  # useful share of the matrix work that the rounds have room for
    bound: str  # what takes longest: matrix, feed (L2), epilogue, softmax, memory, fill
    time_us: float  # without the launch gaps
    floor_us: float
    launches: int = 1


def folded(ops: Iterator[Operation], itemsize: int) -> Iterator[Operation]:
    """A forward pass with LayerNorm folded: what layers.py calls where Ops.folding is given.

    The first rows' statistics are a launch, proj and fc2 leave those of theirs, qkv and fc1 take them. The last fc2
    has LayerNorm behind it as ever. A gated layer has no folded form: the LayerNorm in front of it stays, and proj,
    before that, leaves no statistics.
    """
    ops = tuple(ops)
    gated = sum(o.count for o in ops if o.op == "gated")
    for o in ops:
        s = o.shape
        if o.op == "layer_norm":
            read = itemsize * s["M"] * s["N"] + s["M"] * statistics_bytes(s["N"])
            yield replace(o, name="statistics", op="row_statistics", count=1, bytes=read)
            yield replace(o, count=1 + gated)
        elif o.op != "linear" or (gated and o.name == "proj"):
            yield o
        elif s["residual"]:
            leaves = replace(
                o, op="linear_statistics", bytes=o.bytes + s["M"] * statistics_bytes(s["N"])
            )
            if o.name == "fc2":
                yield replace(leaves, count=o.count - 1)
                yield replace(o, name="last fc2", count=1)
            else:
                yield leaves
        else:
            # and the row sums of the weight
            more = s["M"] * statistics_bytes(s["K"]) + 4 * s["N"]
            yield replace(o, op="linear_folded", bytes=o.bytes + more)


def _kernel(
    o: Operation, hw: Hardware, dtype: str, tile, waves, efficiency, bound, time, launches=1
) -> Kernel:
    floor = max(o.flops / (hw.peak_tflops(dtype) * 1e6), copy_us(hw, o.bytes))
    return Kernel(o.name, o.count, str(tile), waves, efficiency, bound, time, floor, launches)


def _product(
    o: Operation, hw: Hardware, dtype: str, M, N, tile: Tile, bound, time, launches=1
) -> Kernel:
    waves, useful = tile.count(M, N) / hw.sms, wave_efficiency(M, N, tile, hw.sms)
    return _kernel(o, hw, dtype, tile, waves, useful, bound, time, launches)


def _fill_us(hw: Hardware, dtype: str, way: Way) -> float:
    """Of a product of ours, which may ask for its weights before it waits."""
    early = way.dependent and by_descriptors(hw, dtype)
    return FILL_US - (DEPENDENT_FETCH_US if early else 0.0)


def _linear(o: Operation, hw: Hardware, dtype: str, way: Way) -> Kernel:
    M, N, K, activation = (o.shape[i] for i in ("M", "N", "K", "activation"))
    residual = o.shape["residual"]
    epilogue = activation or ("residual" if residual else "bias")
    kind = "activation" if activation else "residual" if residual else "plain"
    if o.op == "linear":
        behind = (
            "norm" if residual else ""
        )  # in a block every product with a residual has a LayerNorm behind it
    else:
        behind = "folded"
        kind = "statistics" if residual else "folded activation" if activation else "folded"
    tile = linear_tile(M, N, K, dtype, epilogue, hw, behind)
    fill = FILL_US if tile.library else _fill_us(hw, dtype, way)
    cold = N * K * DTYPES[dtype] if warm(hw, o.bytes) else o.bytes
    if not tile.library:
        time, bound = gemm_us(hw, dtype, M, N, K, tile, kind, cold, fill)
        return _product(o, hw, dtype, M, N, tile, bound, time)
    time, bound = gemm_us(hw, dtype, M, N, K, tile, "plain", cold)
    if kind == "plain":
        return _product(o, hw, dtype, M, N, tile, bound, time)
    time += pass_us(hw, DTYPES[dtype] * M * N * (3 if residual else 2))[0]
    return _product(o, hw, dtype, M, N, tile, bound, time, launches=2)


def _gated(o: Operation, hw: Hardware, dtype: str, way: Way) -> Kernel:
    """One product, both weights wide; half of it is stored."""
    M, F, K = (o.shape[i] for i in "MNK")
    tile = gated_tile(M, F, K, dtype, hw)
    cold = 2 * F * K * DTYPES[dtype] if warm(hw, o.bytes) else o.bytes
    fill = _fill_us(hw, dtype, way)
    time, bound = gemm_us(hw, dtype, M, 2 * F, K, tile, "gated", cold, fill)
    return _product(o, hw, dtype, M, 2 * F, tile, bound, time)


def _patch_embed(o: Operation, hw: Hardware, dtype: str, way: Way) -> Kernel:
    s = o.shape
    M, N, K = s["B"] * s["G"] ** 2, s["D"], s["C"] * s["P"] ** 2
    tile = patch_tile(M, N, DTYPES[dtype], hw)
    time, bound = gemm_us(hw, dtype, M, N, K, tile, "residual", o.bytes)  # pixels are cold
    return _product(o, hw, dtype, M, N, tile, bound, time)


def _attention(o: Operation, hw: Hardware, dtype: str, way: Way) -> Kernel:
    B, H, Nq, N, D = (o.shape[i] for i in ("B", "H", "Nq", "N", "D"))
    p = attention_program(B, H, Nq, N, D, dtype, hw)
    memory = 0.0 if warm(hw, o.bytes) else o.bytes
    time, bound = attention_us(hw, dtype, B, H, Nq, D, p, memory)
    waves = cdiv(Nq, p.block_m) * B * H / p.heads / hw.sms
    whole, last = p.rounds(Nq, B * H, hw.sms)
    rows = (whole * p.block_m + last * p.tail_m) * p.heads * hw.sms
    return _kernel(
        o, hw, dtype, p, waves, B * H * Nq * N * D / (rows * p.keys * p.lanes), bound, time
    )


def _rows(o: Operation, hw: Hardware, dtype: str, way: Way) -> Kernel:
    time, bound = pass_us(hw, o.bytes)
    return _kernel(o, hw, dtype, "rows", 0.0, 1.0, bound, time)


_PREDICT = {
    "linear": _linear,
    "linear_folded": _linear,
    "linear_statistics": _linear,
    "gated": _gated,
    "patch_embed": _patch_embed,
    "attention": _attention,
    "layer_norm": _rows,
    "row_statistics": _rows,
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
    way: Way = Way()

    @property
    def launches(self) -> int:
        return sum(k.count * k.launches for k in self.kernels)

    @property
    def gap_us(self) -> float:
        """From one launch to the next."""
        return self.hw.launch_gap_us * (DEPENDENT_GAP if self.way.dependent else 1.0)

    @property
    def gaps_us(self) -> float:
        return self.launches * self.gap_us

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
        return kernel.count * (kernel.time_us + kernel.launches * self.gap_us) / self.time_us


def forecast(
    hw: Hardware, model: Model, batch: int, dtype: str = "bf16", way: Way = WAYS[0]
) -> Forecast:
    """Predicts a forward pass that returns all tokens.

    ValueError for a batch below 1, an unknown dtype, LayerNorm folded in fp32, or dependent launches before
    compute capability 9.0.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected at least 1")
    hw.peak_tflops(dtype)
    if way.folded and dtype == "fp32":
        raise ValueError("dtype is fp32, LayerNorm is folded in fp16 and bf16 only")
    if way.dependent and hw.arch < 90:
        raise ValueError(
            f"{hw.name} has compute capability {hw.arch / 10}, dependent launches need 9.0"
        )
    ops = operations(model, batch, DTYPES[dtype])
    ops = tuple(folded(ops, DTYPES[dtype]) if way.folded else ops)
    kernels = tuple(_PREDICT[o.op](o, hw, dtype, way) for o in ops)
    return Forecast(hw, model, batch, dtype, sum(o.flops * o.count for o in ops), kernels, way)
