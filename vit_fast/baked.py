"""What a CUDA graph has baked in, and whether it is still so.

Kernels read parameters at the addresses that they had at capture. Writes into that memory are seen; another tensor,
other memory, another layout of it, another module or another table of operations is not. Baked is what all graphs of an
engine share, Graph adds what one of them has read that was derived from parameters (Derived in weights.py).
"""

from typing import TYPE_CHECKING

import torch

from vit_fast.ops import Ops
from vit_fast.recorder import Recording
from vit_fast.weights import Kept, all_steps

if TYPE_CHECKING:
    from vit_fast.model import ViT

_address = torch._C.TensorBase.data_ptr
_stride = torch._C.TensorBase.stride
_version = torch._C.TensorBase._version.__get__


class Baked:
    """An engine and its table of operations as they are now. No reference to the engine is kept."""

    def __init__(self, engine: "ViT", ops: Ops) -> None:
        self._identity, self._normalization, self._ops = (
            engine.identity(),
            engine.normalization,
            ops,
        )
        self.plain = engine.is_plain()
        self._tensors = engine.tensors()
        # held: the memory that graphs read
        self._storages = [t.untyped_storage() for t in self._tensors]
        self._addresses = list(map(_address, self._tensors))
        self._strides = list(map(_stride, self._tensors))

    def memory_is_same(self) -> bool:
        """Whether all tensors lie where they lay; False also where their memory was freed under them."""
        return list(map(_address, self._tensors)) == self._addresses

    def is_same(self, engine: "ViT", ops: Ops) -> bool:
        """The rest of it; some 50 us for 12 blocks."""
        return (
            ops is self._ops
            and engine.normalization is self._normalization
            and engine.identity() is self._identity
            and list(map(_stride, self._tensors)) == self._strides
        )


class Graph:
    """A recording, and the derived weights that it reads."""

    def __init__(self, recording: Recording, reads: list[Kept]) -> None:
        self.recording = recording
        self.take(reads)

    def take(self, reads: list[Kept]) -> None:
        """What it reads, made anew in its place."""
        # held: the memory that the recording reads
        self._reads = reads
        steps = all_steps()
        known = [(t, version) for kept in reads for t, _, _, _, version, _ in kept.sources]
        # inference tensors keep no version
        self._sources = [t for t, version in known if version is not None]
        self._versions = [version for _, version in known if version is not None]
        # -1, never: one of them was stepped between the reading and now
        self._steps = -1 if any(kept.stepped() for kept in reads) else steps

    def fresh(self) -> bool:
        """Whether nothing was written to what that was derived from."""
        return self._steps == all_steps() and list(map(_version, self._sources)) == self._versions

    def reads_where(self, reads: list[Kept]) -> bool:
        """Whether `reads` lie where the recording reads."""
        return len(reads) == len(self._reads) and all(
            new.result is old.result for new, old in zip(reads, self._reads)
        )
