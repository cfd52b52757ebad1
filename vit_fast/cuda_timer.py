"""Times of a launch on a GPU, small enough a matter that the way of measuring decides.

A program's launches are captured in a CUDA graph, so that no host time is in them, and go through input sets that
together are larger than the L2 cache, so that every launch reads from memory. The graphs are replayed in turn, round
by round: what drifts, clock and temperature, drifts for all. Each is replayed twice in a row and the second time
counts: the host's own launch of it, tens of microseconds, hides behind the first.
"""

import math
from collections.abc import Callable, Sequence

import torch

SPAN_US = 1000.0  # between two events, which tell time to about half a microsecond
MOST_SETS = 64
LEAST_LAUNCHES = 16  # in a graph


def capture(run: Callable[[], object], pool=None) -> Callable[[], None]:
    """What `run` launches, as a CUDA graph: its replay. All of it has run before, so that nothing is compiled now."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        run()
    return graph.replay


def elapsed_us(call: Callable[[], object], ahead: Callable[[], object] | None = None) -> float:
    """GPU time of a call on the current device, microseconds.

    `ahead` keeps the GPU busy until the host has launched the call; without it the launch is part of the time.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if ahead is not None:
        ahead()
    start.record()
    call()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


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
            replays = [self._capture(program, sets, launches, pool) for program in programs]
            # the first replay uploads the graph; the second tells how many fill the span
            spans = [elapsed_us(replay, ahead=replay) for replay in replays]
            repeats = [max(1, math.ceil(SPAN_US / max(span, 1.0))) for span in spans]
            return _in_turn(replays, repeats, launches, rounds)

    def _capture(
        self, program: Callable[[int], object], sets: int, launches: int, pool
    ) -> Callable[[], None]:
        for i in range(sets):
            program(i)

        def run() -> None:
            for i in range(launches):
                program(i % sets)

        return capture(run, pool)


def _in_turn(
    replays: Sequence[Callable[[], None]], repeats: Sequence[int], launches: int, rounds: int
) -> list[list[float]]:
    samples: list[list[float]] = [[] for _ in replays]
    for _ in range(rounds + 1):
        for replay, times, found in zip(replays, repeats, samples):

            def span(replay: Callable[[], None] = replay, times: int = times) -> None:
                for _ in range(times):
                    replay()

            found.append(elapsed_us(span, ahead=span) / (times * launches))
    # the first round brought the clock up
    return [found[1:] for found in samples]


def sets_beyond(nbytes: int, cache: int, free: int) -> int:
    """Sets of `nbytes` that make twice the `cache`: at least 2, at most MOST_SETS and a quarter of `free`; never 0."""
    wanted = min(max(2, math.ceil(2 * cache / nbytes)), MOST_SETS)
    return max(1, min(wanted, free // 4 // nbytes))
