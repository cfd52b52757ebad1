"""What is derived from parameters, and how it stays fresh.

Class token and position are summed once, positions are resized to the image, and for uint8 pixels the
processor's normalization is folded into the patch weights; on a CPU weights are packed. Derived keeps such
results and makes them anew when a parameter that they came from has changed. PyTorch counts the writes to a tensor,
except those of fused optimizers, whose steps are counted here. What cannot be seen is a write past PyTorch's counter:
through `.data`, NumPy or a flat buffer, by a collective of torch.distributed, by another process, or to a parameter
that was made in inference mode. Derived.clear() is for those.

A CUDA graph reads such a result at its address. What one has read is therefore made anew in place after a write to
its parameters, and no result that a graph of the user's has read is freed.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

SIZES = 32


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


def fold_bias(weight: Tensor, bias: Tensor | None, norm: Normalization) -> Tensor:
    """weight [D, C, p, p], bias [D] or None -> [D], at least fp32: what a patch gives whose bytes are all 128."""
    middle = [(128 * norm.rescale - mean) / std for mean, std in zip(norm.mean, norm.std)]
    middle = (weight * _per_channel(weight, middle)).sum((1, 2, 3))
    return middle if bias is None else bias + middle


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
    if _captures(weight):
        raise RuntimeError(
            "the normalization of uint8 pixels cannot be folded into the weights while a CUDA graph is captured, "
            "because its values come from the host: call the model once with uint8 pixels before the capture"
        )
    # fp32 from here on, fp64 for an fp64 model
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return torch.tensor(values, dtype=dtype, device=weight.device).view(-1, 1, 1)


# id of a tensor that something was derived from -> the optimizer steps it has seen since the first such
_steps: dict[int, int] = {}
_counting: list[bool] = []
_all_steps = 0


def all_steps() -> int:
    """How many of those steps there were in all: while it stays, each count has stayed."""
    return _all_steps


def _count_steps(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    global _all_steps
    for group in optimizer.param_groups:
        for p in group["params"]:
            if id(p) in _steps:
                _steps[id(p)] += 1
                _all_steps += 1


class Kept:
    """A result, and the tensors it is made from: the same objects, over the same memory, unchanged.

    Written down before it is made, so that a write meanwhile, by another thread, counts as one behind it.
    """

    result: Tensor
    baked = False  # a graph reads it at its address

    def __init__(self, sources: Sequence[Tensor]) -> None:
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
        self.streams: list[int] = []  # on which it was read, beside the one that it was made on

    def is_of(self, sources: Sequence[Tensor]) -> bool:
        for (kept, _, _, _, version, steps), t in zip(self.sources, sources):
            if kept is not t or _steps[id(t)] != steps:
                return False
            if version is not None and t._version != version:
                return False
        return self.in_place(sources)

    def in_place(self, sources: Sequence[Tensor]) -> bool:
        """The same objects over the same memory, written to or not."""
        for (kept, address, shape, stride, _, _), t in zip(self.sources, sources):
            if kept is not t or t.data_ptr() != address:
                return False
            if t.shape != shape or t.stride() != stride:
                return False
        return [t.dtype for t in sources] == self.dtypes

    def stepped(self) -> bool:
        """Whether an optimizer has stepped since."""
        return any(_steps[id(t)] != steps for t, _, _, _, _, steps in self.sources)

    def read(self) -> None:
        """On the current stream: nobody gets its memory, once it is not held, before that stream has come so far."""
        device = self.result.device
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        if stream not in self.streams:
            self.streams.append(stream)
            self.result.record_stream(torch.cuda.current_stream(device))


class WeightsChanged(RuntimeError):
    """A weight was written between the launches before a capture and the capture itself."""


class _Thread(threading.local):
    reads: list[Kept] | None = None
    capturing = False


_thread = _Thread()


@contextmanager
def reading(capturing: bool = False) -> Iterator[list[Kept]]:
    """What this thread takes from any Derived inside, in order.

    capturing: into a graph of the runtime's own, which reads it from then on. What is not there, fresh, already raises
    WeightsChanged.
    """
    reads: list[Kept] = []
    before = _thread.reads, _thread.capturing
    _thread.reads, _thread.capturing = reads, capturing
    try:
        yield reads
    finally:
        _thread.reads, _thread.capturing = before


def _build(build: Callable[[], Tensor], into: Tensor | None = None) -> Tensor:
    # an inference tensor could not be saved for a later backward
    with torch.inference_mode(False), torch.no_grad():
        result = build()
        if into is not None and _layout(into) == _layout(result):
            result = into.copy_(result)
    if result.is_cuda:
        # the next reader may be on another stream
        torch.cuda.current_stream(result.device).synchronize()
    return result


def _layout(t: Tensor) -> tuple:
    return t.shape, t.stride(), t.dtype, t.device


class Derived:
    """Results by key, each kept while the tensors that it was made from are unchanged.

    A key that is a tuple is one of many, image sizes say, and the newest SIZES of those are kept.
    A deep copy, or an unpickled one, is empty. Safe to use from several threads, and while a CUDA graph is captured:
    what is kept is then read where it lies, and what is not is made inside the graph.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Hashable, Kept] = {}
        self._pinned: list[Tensor] = []

    def get(self, key: Hashable, sources: Sequence[Tensor], build: Callable[[], Tensor]) -> Tensor:
        """What `build` makes of `sources`; where a gradient is wanted it is made in the graph.

        Made anew, it lies where the last one lay if a CUDA graph has read that one and the sources were only written
        to. Whoever reads it on another stream has ordered that write, and with it this one, behind the reading.
        """
        if torch.compiler.is_compiling():
            return build()
        if torch.is_grad_enabled() and any(t.requires_grad for t in sources):
            return build()
        users = _thread.reads is None and _captures(sources[0])
        kept = self._kept.get(key)
        if kept is None or not kept.is_of(sources):
            if users:
                return build()  # part of the graph, in its memory
            if _thread.capturing:
                raise WeightsChanged("a weight was written while the model was captured")
            kept = self._make(key, sources, build)
        elif isinstance(key, tuple):
            with self._lock:
                if self._kept.get(key) is kept:
                    self._kept[key] = self._kept.pop(key)  # newest last
        if _thread.reads is not None:
            _thread.reads.append(kept)
        if kept.result.is_cuda and not (users or _thread.capturing):
            kept.read()
        if users:
            with self._lock:
                if all(t is not kept.result for t in self._pinned):
                    self._pinned.append(kept.result)
        kept.baked = kept.baked or users or _thread.capturing
        return kept.result

    def _make(self, key: Hashable, sources: Sequence[Tensor], build: Callable[[], Tensor]) -> Kept:
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is None or not kept.is_of(sources):
                last = kept if kept is not None and kept.baked and kept.in_place(sources) else None
                kept = Kept(sources)
                kept.result = _build(build, last and last.result)
                if last is not None and kept.result is last.result:
                    kept.baked, kept.streams = True, last.streams
            self._kept[key] = kept  # newest last
            sized = [k for k in self._kept if isinstance(k, tuple)]
            for old in sized[:-SIZES]:
                del self._kept[old]
        return kept

    def nbytes(self) -> int:
        """Bytes held beside the parameters."""
        with self._lock:
            held = [kept.result for kept in self._kept.values()] + self._pinned
        return sum({id(t): t.nbytes for t in held}.values())

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Derived":
        return type(self)()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


def _captures(t: Tensor) -> bool:
    return t.is_cuda and torch.cuda.is_current_stream_capturing()
