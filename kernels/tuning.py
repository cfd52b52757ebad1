"""What a launch rule may know about a GPU, and what was measured on it.

A kernel file's `launch_config` is a pure function of the shape and of a Gpu: nothing is measured
when a user calls, and the same rule can be compiled for a GPU that is not there. Where `vit-fast
tune` has measured a shape, its table goes before the rule: the one in the user's cache first, then
the one that ships for this GPU. A table that cannot be used is named in one warning, and the rule
decides.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from . import tables


def cdiv(a: int, b: int) -> int:
    """a / b rounded up. triton.cdiv costs 5 us on the host."""
    return -(-a // b)


@dataclass(frozen=True)
class Gpu:
    name: str
    arch: int  # compute capability, 90 for 9.0
    sms: int
    smem: int  # bytes of shared memory that one block may take
    pdl: bool = False  # launch kernels before the one in front has ended: dependent.py

    @property
    def bulk_copies(self) -> bool:
        """Tensor descriptors are copied by hardware, and the matrix unit reads shared memory (9.x
        and 10.x).
        """
        return self.arch // 10 in (9, 10)


# shared memory: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability";
# multiprocessors: the vendor's datasheets
KNOWN = {
    "sm_80": Gpu("A100", 80, 108, 163 << 10),
    "sm_86": Gpu("A10", 86, 72, 99 << 10),
    "sm_89": Gpu("L4", 89, 58, 99 << 10),
    "sm_90": Gpu("H100/H200", 90, 132, 227 << 10),
    "sm_100": Gpu("B200", 100, 148, 227 << 10),
    "sm_120": Gpu("RTX 5090", 120, 170, 99 << 10),
}


_NEAR = 1.5  # how far the rows of a launch may be from measured ones
_caches: list[Callable[[], None]] = []


def cached(function: Callable) -> Callable:
    """lru_cache for what rests on `tuned` or `switch`: `forget` empties it."""
    function = lru_cache(maxsize=None)(function)
    _caches.append(function.cache_clear)
    return function


def forget() -> None:
    """Tables are read anew at the next launch: for who has just written one."""
    for clear in _caches:
        clear()


@cached
def gpu_of(device: torch.device) -> Gpu:
    """The GPU behind `device`, with what was measured of it; for the interpreter's CPU tensors the
    H100/H200, whose rules it then follows.
    """
    if device.type != "cuda":
        return KNOWN["sm_90"]
    p = torch.cuda.get_device_properties(device)
    arch, smem = p.major * 10 + p.minor, p.shared_memory_per_block_optin
    gpu = Gpu(p.name, arch, p.multi_processor_count, smem)
    return replace(gpu, pdl=switch(gpu, "pdl"))


def dtype_name(dtype: torch.dtype) -> str:
    """ "bf16", "fp16" or "fp32"."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]


def tuned(gpu: Gpu, op: str, **shape: int | str) -> dict[str, Any] | None:
    """The fields of op's Config that were measured fastest for this shape, or None: the rule decides.

    shape: the fields of tables.FIELDS[op], TypeError where they are others. The rows (M of a linear,
    B of attention) may be up to 1.5 times the measured ones, or they 1.5 times these: the nearest counts.
    """
    if shape.keys() != set(tables.FIELDS[op]):
        raise TypeError(f"tuned({op!r}) takes {tables.FIELDS[op]}, got {tuple(shape)}")
    measured = _index(gpu).get(_key(op, shape))
    if not measured:
        return None
    rows = shape[tables.FIELDS[op][0]]
    distance, config = min(
        ((max(rows / m, m / rows), config) for m, config in measured.items()), key=lambda d: d[0]
    )
    return dict(config) if config is not None and distance <= _NEAR else None


def hardware(gpu: Gpu) -> dict[str, Any]:
    """What a table says of the GPU it was measured on: what it is, not how it is used."""
    return {name: getattr(gpu, name) for name in ("name", "arch", "sms", "smem")}


def switch(gpu: Gpu, name: str) -> bool:
    """Whether this yes or no was measured to be faster as a yes; False where nothing was measured."""
    return _in_use(gpu).switches.get(name, False)


@dataclass(frozen=True)
class Source:
    """Where the launch configs of a GPU come from."""

    kind: str  # "user", "shipped" or "rule"
    path: Path | None = None
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    entries: tuple[Mapping[str, Any], ...] = ()
    refused: tuple[str, ...] = ()  # a line for each table that lies there and cannot be used


def which_table(gpu: Gpu) -> Source:
    """The user's table, else the one that ships, else the rule; read anew, without a warning."""
    refused = []
    for kind, path in (
        ("user", tables.user_path(gpu.name)),
        ("shipped", tables.shipped_path(gpu.name)),
    ):
        try:
            table = path and tables.read(path, hardware(gpu), _triton_version())
        except ValueError as error:
            refused.append(
                f"the tuning table {path} is not used: {error}. "
                "`vit-fast tune` writes a new one; until then the rule decides, or a table that ships"
            )
            continue
        if table:
            switches = {name: s["on"] for name, s in table["switches"].items()}
            entries = tuple(table["entries"])
            about = (table["date"], table["versions"], switches, entries)
            return Source(kind, path, *about, tuple(refused))
    return Source("rule", refused=tuple(refused))


def _triton_version() -> str:
    import triton

    return triton.__version__


@cached
def _in_use(gpu: Gpu) -> Source:
    source = which_table(gpu)
    for line in source.refused:
        warnings.warn(f"vit-fast: {line}", stacklevel=2)
    return source


@cached
def _index(gpu: Gpu) -> dict[tuple, dict[int, dict[str, Any] | None]]:
    """Each shape but for its rows -> {rows: config}."""
    index = {}
    for entry in _in_use(gpu).entries:
        op, shape, config = entry["op"], entry["shape"], entry["config"]
        found = index.setdefault(_key(op, shape), {})
        rows = shape[tables.FIELDS[op][0]]
        found[rows] = None if config is None else tables.config_fields(op, config)
    return index


def _key(op: str, shape: Mapping[str, int | str]) -> tuple:
    return (op, *(shape[name] for name in tables.FIELDS[op][1:]))
