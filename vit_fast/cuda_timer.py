"""Times of a launch on a GPU, small enough a matter that the way of measuring decides.

A program's launches are captured in a CUDA graph, so that no host time is in them, and go through input sets that
together are larger than the L2 cache, so that every launch reads from memory. The graphs are replayed in turn, round
by round, with CUDA events around each: what drifts, clock and temperature, drifts for all.
"""

import math
from collections.abc import Callable, Sequence

import torch

SPAN_US = 1000.0  # between two events, which tell time to about half a microsecond
MOST_SETS = 64
LEAST_LAUNCHES = 16  # in a graph


class CudaTimer:
    """timer(programs, sets, rounds) -> microseconds a launch, `rounds` of them for each program.

    program(i) launches on input set i of 0 .. sets - 1. RuntimeError is CUDA's own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sets(self, nbytes: int) -> int:
        """How many input sets of `nbytes` make twice the L2 cache, in a quarter of the free memory at most."""
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        free, _ = torch.cuda.mem_get_info(self.device)
        return sets_beyond(nbytes, cache, free)

    def __call__(
        self, programs: Sequence[Callable[[int], object]], sets: int, rounds: int
    ) -> list[list[float]]:
        with torch.cuda.device(self.device):
            launches = sets * math.ceil(LEAST_LAUNCHES / sets)
            pool = torch.cuda.graph_pool_handle()
            graphs = [self._capture(program, sets, launches, pool) for program in programs]
            # the first replay uploads the graph; the second tells how many fill the span
            self._spans(graphs, [1] * len(graphs))
            repeats = [
                max(1, math.ceil(SPAN_US / max(span, 1.0)))
                for span in self._spans(graphs, [1] * len(graphs))
            ]
            samples = []
            for _ in range(rounds + 1):
                spans = self._spans(graphs, repeats)
                samples.append([s / (n * launches) for s, n in zip(spans, repeats)])
            # the first round brought the clock up
            return [list(column) for column in zip(*samples[1:])]

    def _capture(
        self, program: Callable[[int], object], sets: int, launches: int, pool
    ) -> torch.cuda.CUDAGraph:
        # what is compiled or loaded at a first launch may not be captured
        for i in range(sets):
            program(i)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            for i in range(launches):
                program(i % sets)
        return graph

    def _spans(self, graphs: Sequence[torch.cuda.CUDAGraph], repeats: Sequence[int]) -> list[float]:
        """Microseconds of each graph's replays, one graph after the other."""
        events = []
        for graph, times in zip(graphs, repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(times):
                graph.replay()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize(self.device)
        return [1e3 * start.elapsed_time(end) for start, end in events]


def sets_beyond(nbytes: int, cache: int, free: int) -> int:
    """Sets of `nbytes` that make twice the `cache`: at least 2, at most MOST_SETS and a quarter of `free`; never 0."""
    wanted = min(max(2, math.ceil(2 * cache / nbytes)), MOST_SETS)
    return max(1, min(wanted, free // 4 // nbytes))
