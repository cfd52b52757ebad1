"""SoftwareRecorder: a CUDA graph's promises and pitfalls on a CPU.

It records the operations that reach PyTorch's dispatcher, with the tensors themselves: aliases of their memory, as a
CUDA graph has addresses. A write into that memory is seen by a replay, another tensor in a parameter's place is not.
Before each replay everything that any recording of the pool has written is NaN, and behind it what the others read: as
memory that is shared may be, and so that nothing that a replay leaves out can pass for a result.
"""

import threading

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from models import NORM, SPEC, randomize
from vit_fast import ViT, ViTSpec, torch_ops
from vit_fast.pixels import Patches
from vit_fast.recorder import Recording


class Tape(TorchDispatchMode):
    """The operations inside, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple] = []
        self.made: list[Tensor] = []
        self.inputs: tuple[Tensor, ...] = ()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        result = op(*args, **kwargs)
        memory = {_memory(t) for t in given}
        new = [t for t in tree_iter(result) if isinstance(t, Tensor) and _memory(t) not in memory]
        if new or op._schema.is_mutable:  # a view needs no work
            baked = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
            self.steps.append((op, *baked, [t.detach() for t in new]))
            self.made += [t.detach() for t in new]
        return result

    def replay(self) -> None:
        for op, args, kwargs, made in self.steps:
            given = {_memory(t) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
            result = op(*args, **kwargs)
            new = [
                t for t in tree_iter(result) if isinstance(t, Tensor) and _memory(t) not in given
            ]
            for t, value in zip(made, new, strict=True):
                t.copy_(value)


class SoftwareRecorder:
    """What vit_fast.recorder.CudaRecorder is to a GPU."""

    bytes_a_graph = 1000

    def __init__(self, device: torch.device) -> None:
        self.device, self.limit = device, 10**9
        self.baked: object = None
        self.tapes: list[Tape] = []
        self.records = self.replays = self.resets = 0
        self.pool = 0
        self.fail: list[BaseException] = []  # what the next captures raise
        self._turn = threading.Lock()

    @staticmethod
    def takes(pixels: Tensor | Patches, ops) -> bool:
        graph_wanted = ops.differentiable and torch.is_grad_enabled()
        return type(pixels) in (Tensor, Patches) and ops.pack is None and not graph_wanted

    def settings(self):
        return self.baked

    def record(self, kinds, run) -> Recording:
        if self.fail:
            self.pool += self.bytes_a_graph
            raise self.fail.pop(0)
        inputs = tuple(_poison(torch.empty(shape, dtype=dtype)) for shape, dtype in kinds)
        with Tape() as tape:
            outputs = run(*inputs)
        tape.inputs = inputs
        self.tapes.append(tape)
        self.records += 1
        self.pool += self.bytes_a_graph

        def replay() -> None:
            assert self._turn.locked(), "two replays at a time in one pool"
            with torch.inference_mode(False), torch.no_grad():
                for t in (t for other in self.tapes for t in other.made if t.is_floating_point()):
                    t.fill_(torch.nan)
                tape.replay()
                for t in (t for other in self.tapes if other is not tape for t in other.inputs):
                    _poison(t)
            self.replays += 1

        return Recording(inputs, outputs, replay)

    def begin(self):
        assert self._turn.acquire(blocking=False), "a replay was begun within another"

    def end(self, turn) -> None:
        self._turn.release()

    def nbytes(self) -> int:
        return self.pool

    def wait(self) -> None:
        """Nothing runs behind a call."""

    def reset(self) -> None:
        self.pool, self.tapes = 0, []
        self.resets += 1

    def memory_read(self) -> set[int]:
        """Where the recordings read memory that they have not made."""
        found = set()
        for tape in self.tapes:
            made = {_memory(t) for t in tape.made}
            for _, args, kwargs, _ in tape.steps:
                given = {_memory(t) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
                found |= given - made
        return found


def _poison(t: Tensor) -> Tensor:
    """NaN; False, which of a mask is as bad; 0 of bytes."""
    return t.fill_(torch.nan if t.is_floating_point() else 0)


def _memory(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def recorded_vit(spec: ViTSpec = SPEC) -> ViT:
    """A tiny one with random weights, on PyTorch's operations, replayed in software."""
    with torch.inference_mode(False):
        vit = randomize(ViT(spec, NORM, ops=torch_ops())).eval()
    vit.recorder = SoftwareRecorder
    return vit


def recorder(vit: ViT) -> SoftwareRecorder:
    return vit._graphs._recorder


def by_launches(vit: ViT, pixels: Tensor | Patches) -> Tensor:
    return vit.encode(pixels, vit.ops)[0]


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-5)


def check(vit: ViT, pixels: Tensor | Patches, replayed: bool | None = None) -> None:
    """As by ordinary launches; and whether it came out of a graph."""
    before = 0 if vit._graphs is None else recorder(vit).replays
    assert close(vit(pixels), by_launches(vit, pixels))
    if replayed is not None:
        assert recorder(vit).replays - before == replayed
