"""What is derived from parameters, and how it stays fresh.

Class token and position are summed once, positions are resized to the image, and for uint8 pixels the
processor's normalization is folded into the patch weights; on a CPU weights are packed. Derived keeps such
results and makes them anew when a parameter that they came from has changed. PyTorch counts the writes to a tensor,
except those of fused optimizers, whose steps are counted here. What cannot be seen is a write past PyTorch's counter:
through `.data`, NumPy or a flat buffer, by a collective of torch.distributed, by another process, or to a parameter
that was made in inference mode. Derived.clear() is for those.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

SIZES = 8


@dataclass(frozen=True)
class Normalization:
    """What an image processor does to a byte of channel c: (byte * rescale - mean[c]) / std[c]."""

    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        # hashable, also where lists were given
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        if len(self.mean) != len(self.std):
            raise ValueError(f"Normalization: {len(self.mean)} means for {len(self.std)} stds")
        if 0 in self.std:
            raise ValueError(f"Normalization: std must not be zero, got {self.std}")


def fold_weight(weight: Tensor, norm: Normalization) -> Tensor:
    """weight [D, C, p, p] of normalized pixels -> [D, C * p * p] of (byte - 128), in weight.dtype."""
    scale = _per_channel(weight, [norm.rescale / std for std in norm.std])
    return (weight * scale).to(weight.dtype).flatten(1)


def fold_bias(weight: Tensor, bias: Tensor, norm: Normalization) -> Tensor:
    """weight [D, C, p, p], bias [D] -> [D], at least fp32: what a patch gives whose bytes are all 128."""
    middle = [(128 * norm.rescale - mean) / std for mean, std in zip(norm.mean, norm.std)]
    return bias + (weight * _per_channel(weight, middle)).sum((1, 2, 3))


def fold_norm_weight(weights: Sequence[Tensor], gamma: Tensor) -> Tensor:
    """weights [n, K] each, one below the other, of LayerNorm's output -> [N, K] of its normalized rows."""
    whole = torch.cat(tuple(weights))
    dtype = torch.promote_types(whole.dtype, torch.float32)
    return (whole.to(dtype) * gamma.to(dtype)).to(whole.dtype)


def fold_norm_bias(weights: Sequence[Tensor], biases: Sequence[Tensor], beta: Tensor) -> Tensor:
    """weights [n, K], biases [n] or none -> [N], at least fp32: what LayerNorm's bias adds to theirs."""
    dtype = torch.promote_types(beta.dtype, torch.float32)
    shift = torch.cat(tuple(weights)).to(dtype) @ beta.to(dtype)
    return shift + torch.cat(tuple(biases)).to(dtype) if biases else shift


def _per_channel(weight: Tensor, values: list[float]) -> Tensor:
    # fp32 from here on, fp64 for an fp64 model
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return torch.tensor(values, dtype=dtype, device=weight.device).view(-1, 1, 1)


def resize_positions(pos: Tensor, native: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """pos [h * w, D] on `native` (h, w) -> [h' * w', D] on `grid`, exactly as transformers does it."""
    if native[0] != native[1]:
        raise ValueError(
            f"positions on a grid of {native[0]} x {native[1]} patches cannot be resized to "
            f"{grid[0]} x {grid[1]}: transformers defines it for square grids only, use the native size"
        )
    table = pos.reshape(1, *native, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
    return table.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1)


# id of a tensor that something was derived from -> the optimizer steps it has seen since the first such
_steps: dict[int, int] = {}
_counting: list[bool] = []


def _count_steps(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            if id(p) in _steps:
                _steps[id(p)] += 1


class _Kept:
    """A result, and the tensors it was made from: the same objects, over the same memory, unchanged."""

    def __init__(self, sources: Sequence[Tensor], result: Tensor) -> None:
        if not _counting:
            _counting.append(True)
            register_optimizer_step_post_hook(_count_steps)
        # held, and their memory too, so that neither an id nor an address comes to mean another one
        self.sources = [
            # inference tensors keep no version
            (t, t.data_ptr(), t.shape, t.stride(), None if t.is_inference() else t._version,
             _steps.setdefault(id(t), 0))
            for t in sources
        ]  # fmt: skip
        self.dtypes = [t.dtype for t in sources]
        self.storages = [t.untyped_storage() for t in sources]
        self.result = result

    def is_of(self, sources: Sequence[Tensor]) -> bool:
        for (kept, address, shape, stride, version, steps), t in zip(self.sources, sources):
            if kept is not t or t.data_ptr() != address or _steps[id(t)] != steps:
                return False
            if version is not None and t._version != version:
                return False
            if t.shape != shape or t.stride() != stride:
                return False
        return [t.dtype for t in sources] == self.dtypes


def _build(build: Callable[[], Tensor]) -> Tensor:
    # an inference tensor could not be saved for a later backward
    with torch.inference_mode(False), torch.no_grad():
        result = build()
    if result.is_cuda:
        # the next reader may be on another stream
        torch.cuda.current_stream(result.device).synchronize()
    return result


class Derived:
    """Results by key, each kept while the tensors that it was made from are unchanged.

    A key that is a tuple is one of many, image sizes say, and the newest SIZES of those are kept.
    A deep copy, or an unpickled one, is empty. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Hashable, _Kept] = {}

    def get(self, key: Hashable, sources: Sequence[Tensor], build: Callable[[], Tensor]) -> Tensor:
        """What `build` makes of `sources`; where a gradient is wanted it is made in the graph."""
        if torch.compiler.is_compiling():
            return build()
        if torch.is_grad_enabled() and any(t.requires_grad for t in sources):
            return build()
        kept = self._kept.get(key)
        if kept is None or not kept.is_of(sources) or isinstance(key, tuple):
            return self._make(key, sources, build)
        return kept.result

    def _make(
        self, key: Hashable, sources: Sequence[Tensor], build: Callable[[], Tensor]
    ) -> Tensor:
        if sources[0].is_cuda and torch.cuda.is_current_stream_capturing():
            # memory of the graph being captured is not to be kept
            return build()
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is None or not kept.is_of(sources):
                kept = _Kept(sources, _build(build))
            self._kept[key] = kept  # newest last
            sized = [k for k in self._kept if isinstance(k, tuple)]
            for old in sized[:-SIZES]:
                del self._kept[old]
        return kept.result

    def nbytes(self) -> int:
        """Bytes held beside the parameters."""
        return sum(kept.result.nbytes for kept in self._kept.values())

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Derived":
        return type(self)()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()
