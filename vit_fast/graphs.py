"""GraphCache: an engine's forward passes as CUDA graphs, one for each batch bucket, image size, dtype and outputs; and
for each number of patches of images of several sizes, with a mask and without.

The launches of a forward pass cost the host more than a small batch costs the GPU; a graph launches them all at once.
It reads weights where they lay at capture (baked.py). What it reads is held as long as the graph is, so one that is out
of date still reads valid memory. That is why a replay is launched first, and most of the checks whether it was right to
do so are made while the GPU works on it; where one fails, its outputs are thrown away and the call runs anew.

A call whose graph is not there runs by ordinary launches, and is captured behind them. Results are copied out of the
graph's buffers, so they belong to the caller: one copy an output, of b * N * D elements.
"""

import os
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vit_fast.baked import Baked, Graph
from vit_fast.graph_inputs import Key, joined, kinds, put, split
from vit_fast.ops import Ops
from vit_fast.pixels import Patches
from vit_fast.recorder import CudaRecorder
from vit_fast.weights import WeightsChanged, reading

if TYPE_CHECKING:
    from vit_fast.model import ViT

LARGEST = 64  # images; beyond, a GPU is busy longer than a host needs for the launches
COUNT = 64  # graphs
WORTH = 16  # replays, for which a capture has paid off
LONGEST_WAIT = 64  # calls

Answer = tuple[Tensor, dict[int | str, Tensor]]  # what ViT.encode returns


def bucket(batch: int) -> int:
    """The batch that a graph for `batch` images has, 0 for none: each up to 8, then four for each doubling, to 64.

    At most a fifth of its images is padding: 9 of 10, 17 of 20.
    """
    if batch <= 8 or batch > LARGEST:
        return batch if 0 < batch <= 8 else 0
    step = 1 << ((batch - 1).bit_length() - 3)
    return -(-batch // step) * step


@dataclass(frozen=True)
class Graphs:
    """count: graphs that are kept. nbytes: GPU memory in their pool. refused: what runs without one, and why."""

    count: int = 0
    nbytes: int = 0
    refused: tuple[str, ...] = ()


class GraphCache:
    """The graphs of one engine.

    recorder: makes the recorder for a device. limit: bytes in the pool, None for the recorder's own (a quarter of the
    GPU's memory). count: how many graphs. Where a new graph would pass the count, the one that was used least recently
    goes. Where it would pass the limit all others go, because a pool gives memory back only as a whole; a graph that
    passes it alone is not kept. Where graphs are dropped before they were used WORTH times (ever new sizes, weights
    that are exchanged at each call), ever more calls run by ordinary launches before the next capture.

    Safe to use from several threads and streams; replays run one after the other.
    """

    def __init__(
        self,
        engine: "ViT",
        recorder: Callable[[torch.device], CudaRecorder] = CudaRecorder,
        limit: int | None = None,
        count: int = COUNT,
    ) -> None:
        self._engine = weakref.ref(engine)
        self._make, self._recorder = recorder, None
        self._limit, self._count = limit, count
        self._lock = threading.Lock()
        self._graphs: OrderedDict[Key, Graph] = OrderedDict()
        self._refused: dict[Key, str] = {}
        self._nbytes = 0
        self._replays = 0  # since graphs were dropped
        self._wait = self._left = 0  # calls before the next capture
        self._baked: Baked | None = None

    def belongs_to(self, engine: "ViT") -> bool:
        """False for a shallow copy, which came with its original's."""
        return self._engine() is engine

    def run(
        self,
        pixels: Tensor | Patches,
        ops: Ops,
        rows: int | None,
        keep: Collection[int | str],
        dtype: torch.dtype,
    ) -> Answer:
        """As engine.encode(pixels.to(dtype), ops, rows, keep), in tensors of the caller's own.

        RuntimeError in a process that was forked from the one that made the graphs.
        """
        recorder = self._recorder
        if recorder is not None and self._pid != os.getpid():
            raise RuntimeError(
                "this process was forked from one that had used the model on a GPU, and CUDA does not survive a fork: "
                "start workers with torch.multiprocessing.get_context('spawn')"
            )
        engine = self._engine()
        given = split(pixels)
        size = bucket(len(given[0]))
        try:
            if not size:
                return engine.encode(pixels.to(dtype), ops, rows, keep)
            if recorder is None or recorder.device != pixels.device:
                recorder = self._start(pixels.device)
            key = Key(size, kinds(given, dtype), rows, tuple(keep), recorder.settings())
            return self._replay(engine, key, given, ops) or self._launch(engine, key, given, ops)
        except torch.OutOfMemoryError:
            if not self._graphs:
                raise
        # graphs give way to the model itself
        self.clear()
        return engine.encode(pixels.to(dtype), ops, rows, keep)

    def clear(self) -> None:
        """Drops all graphs, and what was said against some."""
        with self._lock:
            self._forget()

    def capture_now(self) -> None:
        """The next call that has no graph gets one, whatever was wasted before."""
        self._wait = self._left = 0

    def report(self) -> Graphs:
        with self._lock:
            refused = tuple(f"{key}: {why}" for key, why in self._refused.items())
            return Graphs(len(self._graphs), self._nbytes, refused)

    def _start(self, device: torch.device) -> CudaRecorder:
        with self._lock:
            self._forget()
            self._pid = os.getpid()
            self._recorder = self._make(device)
            return self._recorder

    def _replay(
        self, engine: "ViT", key: Key, given: tuple[Tensor, ...], ops: Ops
    ) -> Answer | None:
        """None where there is no graph, or not one of the model as it is."""
        with self._lock:
            graph = self._graphs.get(key)
            # before the launch, because memory that was freed must not be read
            if graph is None or not self._baked.memory_is_same():
                return None
            recorder, recording, batch = self._recorder, graph.recording, len(given[0])
            whole = batch == key.batch
            turn = recorder.begin()
            try:
                put(given, recording.inputs)
                recording.replay()
                if not (graph.fresh() and self._baked.is_same(engine, ops)):
                    return None
                outputs = [y.clone() if whole else y[:batch].clone() for y in recording.outputs]
            finally:
                recorder.end(turn)
            self._graphs.move_to_end(key)
            self._replays += 1
        return outputs[0], dict(zip(key.keep, outputs[1:]))

    def _launch(self, engine: "ViT", key: Key, given: tuple[Tensor, ...], ops: Ops) -> Answer:
        """By ordinary launches; and captured behind them, if that is due."""
        if not self._is_due(engine, key, ops):
            return engine.encode(joined(given).to(key.dtype), ops, key.rows, key.keep)
        batch, device = len(given[0]), given[0].device
        # tensors like the graph's own, also in their strides: so that what it launches is compiled
        static = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in key.static()]
        put(given, static)
        with reading() as reads:
            tokens, kept = engine.encode(joined(static), ops, key.rows, key.keep)
        if batch < key.batch:
            tokens = tokens[:batch].clone()
            kept = {i: y[:batch].clone() for i, y in kept.items()}
        refused = ""
        with self._lock:
            if self._baked is not None and self._baked.is_same(engine, ops):
                graph = self._graphs.get(key)
                if graph is not None and graph.reads_where(reads):
                    graph.take(reads)
                elif key not in self._refused:
                    self._graphs.pop(key, None)
                    refused = self._capture(engine, key, ops)
        if refused:
            warnings.warn(f"vit_fast launches {key}, without a CUDA graph: {refused}", stacklevel=5)
        return tokens, kept

    def _is_due(self, engine: "ViT", key: Key, ops: Ops) -> bool:
        """Whether the call is to be captured, or its graph, out of date, looked at again."""
        with self._lock:
            baked = self._baked
            if baked is None or not (baked.memory_is_same() and baked.is_same(engine, ops)):
                self._forget()
                self._baked = Baked(engine, ops)
            if not self._baked.plain or key in self._refused:
                return False
            if key in self._graphs:
                return True
            self._left -= 1
            return self._left < 0

    def _capture(self, engine: "ViT", key: Key, ops: Ops) -> str:
        """Keeps a graph for `key`, within the bounds; or why there will be none."""

        def run(*static: Tensor) -> tuple[Tensor, ...]:
            tokens, kept = engine.encode(joined(static), ops, key.rows, key.keep)
            return tokens, *(kept[i] for i in key.keep)

        recorder, refused = self._recorder, ""
        limit = recorder.limit if self._limit is None else self._limit
        for again in (True, False):
            try:
                # in tensors that may be written in any mode
                with torch.inference_mode(False), torch.no_grad(), reading(capturing=True) as reads:
                    recording = recorder.record(key.static(), run)
            except WeightsChanged:
                return ""  # the next call tries again
            except torch.OutOfMemoryError:
                # a capture cannot take what the allocator keeps of earlier launches; dropping gives that back, too
                refused = "out of GPU memory at capture"
            except RuntimeError as error:
                refused = f"it cannot be captured ({str(error).partition(chr(10))[0]})"
                again = False
            else:
                nbytes = recorder.nbytes()
                if nbytes <= limit:
                    self._keep(key, Graph(recording, reads), nbytes)
                    return ""
                del recording, reads
                refused = (
                    f"its graph takes {nbytes / 1e6:.1f} MB, the limit is {limit / 1e6:.1f} MB"
                )
                again = again and bool(self._graphs)
            # what was taken lies in the pool, and only a whole pool is given back
            self._drop()
            if not again:
                break
        self._refused[key] = refused
        return refused

    def _keep(self, key: Key, graph: Graph, nbytes: int) -> None:
        self._graphs[key], self._nbytes = graph, nbytes
        if len(self._graphs) > self._count:
            self._recorder.wait()
            self._graphs.popitem(last=False)
            self._wasted()

    def _drop(self) -> None:
        if self._graphs:
            self._wasted()
            # what they hold, derived weights too, may be read on any stream
            self._recorder.wait()
        self._graphs.clear()
        self._nbytes = 0
        self._recorder.reset()

    def _forget(self) -> None:
        if self._graphs:
            self._drop()
        self._refused.clear()
        self._baked = None

    def _wasted(self) -> None:
        self._wait = 0 if self._replays >= WORTH else min(LONGEST_WAIT, 2 * self._wait + 1)
        self._left, self._replays = self._wait, 0

    def __deepcopy__(self, memo: dict) -> None:
        return None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()
