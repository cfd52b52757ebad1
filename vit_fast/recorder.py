"""CudaRecorder: a forward pass as a CUDA graph, recorded once and launched as a whole.

A recording has its inputs and its outputs at addresses of its own, in a pool of memory that all recordings of one
recorder share: what one writes on the way to its outputs, another overwrites. So one runs after the other on the GPU,
whatever streams and threads they are asked for on: each waits for the event that the last one left behind.

What GraphCache (graphs.py) asks of a recorder is what is public here; the tests have one that records and replays
PyTorch operations on a CPU (tests/recorder.py).
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vit_fast.graph_inputs import Kind
from vit_fast.ops import Ops, triton_ops
from vit_fast.pixels import Patches

# PyTorch has one capture in a process at a time
_capture = threading.Lock()


@dataclass(frozen=True)
class Recording:
    """inputs: what the caller writes; outputs: what replay() then launches the work for."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]


class CudaRecorder:
    """Recordings on one CUDA device. `limit`: bytes that its pool may have if nothing else is said."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.limit = torch.cuda.get_device_properties(device).total_memory // 4
        with torch.cuda.device(device):
            # PyTorch hands out the same 32 streams of each priority again and again. What another thread launched on
            # this one during a capture would be captured: of the highest priority it is hardly anyone else's.
            self._stream = torch.cuda.Stream(priority=torch.cuda.Stream.priority_range()[1])
        self._last = torch.cuda.Event()
        self._pool = torch.cuda.graph_pool_handle()

    @staticmethod
    def takes(pixels: Tensor | Patches, ops: Ops) -> bool:
        """Whether this call may be replayed: the kernels alone, on CUDA, outside a capture of the user's.

        Another table, made with replace(), may do what a graph does not: count calls, or read from the host.
        """
        return (
            pixels.is_cuda
            and ops.name.startswith("triton")
            and ops is triton_ops(folded=ops.folding is not None)
            and not torch.cuda.is_current_stream_capturing()
            and _pools()
        )

    def settings(self) -> Hashable:
        """What the launches depend on beside shapes and dtypes, baked into a recording."""
        # triton is there, or takes() had said no
        from vit_fast.kernels.linear import fp32_precision

        return fp32_precision()

    def record(
        self,
        kinds: Sequence[Kind],
        run: Callable[..., tuple[Tensor, ...]],
    ) -> Recording:
        """What `run` launches for inputs of these shapes and dtypes; nothing runs on the GPU yet.

        run: has run before for those, so that its kernels are compiled. torch.OutOfMemoryError where the pool
        cannot grow, another RuntimeError where something cannot be captured: nothing is kept then but the pool.
        """
        graph = torch.cuda.CUDAGraph()
        with _capture, torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            with self._cleaning_up():
                # other threads may go on allocating and launching meanwhile
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                inputs = tuple(
                    torch.empty(shape, dtype=dtype, device=self.device) for shape, dtype in kinds
                )
                outputs = run(*inputs)
            except BaseException:
                # says once more that the capture failed, if it was invalidated; the first error says why
                with contextlib.suppress(RuntimeError), self._cleaning_up():
                    graph.capture_end()
                raise
            with self._cleaning_up():
                graph.capture_end()
        if not self._holds(inputs[0]):
            raise RuntimeError(
                "its memory comes from another pool, as under torch.cuda.use_mem_pool"
            )
        return Recording(inputs, outputs, graph.replay)

    @contextlib.contextmanager
    def _cleaning_up(self) -> Iterator[None]:
        """Where a capture was invalidated, PyTorch up to 2.13 leaves the allocator in the middle of it: it would free
        nothing from then on."""
        try:
            yield
        except RuntimeError:
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(self.device.index, self._pool)
                torch._C._cuda_releasePool(self.device.index, self._pool)
            raise

    def begin(self) -> torch.cuda.Stream:
        """Before anything of a recording is written or launched on the current stream."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(self._last)
        return stream

    def end(self, stream: torch.cuda.Stream) -> None:
        """After the last use of a recording's outputs."""
        self._last.record(stream)

    def wait(self) -> None:
        """Until no recording runs, on any stream."""
        self._last.synchronize()

    def nbytes(self) -> int:
        """Bytes of GPU memory in the pool."""
        return sum(segment["total_size"] for segment in self._segments())

    def _holds(self, t: Tensor) -> bool:
        return any(
            0 <= t.data_ptr() - segment["address"] < segment["total_size"]
            for segment in self._segments()
        )

    def _segments(self) -> list[dict]:
        return [
            segment
            for segment in torch.cuda.memory_snapshot()
            if tuple(segment["segment_pool_id"]) == tuple(self._pool)
        ]

    def reset(self) -> None:
        """A new pool. The memory of the old one, whose recordings are gone, goes back to the GPU."""
        self.wait()
        self._pool = torch.cuda.graph_pool_handle()
        # refused during a capture of someone else's: the allocator then takes the memory back when it needs it
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


@functools.cache
def _pools() -> bool:
    # cudaMallocAsync and allocators of the user's own have no private pools that can be counted
    return torch.cuda.get_allocator_backend() == "native"
