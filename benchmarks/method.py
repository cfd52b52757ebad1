"""How programs are timed: warmed up, in turn, round by round, in an order that moves on by one each round."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vit_fast.cuda_timer import elapsed_us

from .host import last_level_cache
from .measure import quantile
from .task import Program

# a sample is at least as long: what one call takes less is called again and divided
SAMPLE_MS = 4.0
# shorter programs are called for WAKE_MS behind the pause, untimed: their processors have gone to sleep. Of longer ones
# that is too little to matter, so that it favours nobody in a case with programs of both kinds
SHORT_MS = 150.0
WAKE_MS = 2.0
MOST_ROUNDS = 500
# a pause of which this process is busy for a greater share is followed by another one: ONNX Runtime's threads spin for
# 30 ms behind a call, and would take a processor from the program that comes next
IDLE, MOST_PAUSES = 0.1, 10
# on a GPU, of work that runs ahead of a single operation while the host launches it
HIDDEN_MS = 1.0
# of the seconds of a case; a whole model's is 1
SHARE = {"operation": 0.1, "block": 0.3, "end to end": 0.5}


@dataclass(frozen=True)
class Method:
    """seconds: of timing a case, at least least_rounds. pause_ms: after each program, until its threads sleep.

    Bounds beyond which a case is called disturbed: spread, the width of the middle half of a program's samples over
    their median; drift, by which the baseline's median at the end differs from before; share of the processors that
    others took.
    """

    seconds: float = 10.0
    least_rounds: int = 5
    pause_ms: float = 20.0
    spread_bound: float = 0.10
    drift_bound: float = 0.05
    share_bound: float = 0.05
    order: str = "in turn"

    def text(self, device: str) -> str:
        by_turns, gpu = self.order == "in turn", ""
        if device == "cuda":
            gpu = " A call's latency is the host's clock until its result is there"
            gpu += (
                "; images per second are of many calls in a row, by CUDA events. Single operations are by CUDA events "
                "behind work that hides their launch."
                if by_turns
                else ", launch included; images per second are of such calls."
            )
        turns = "in turn, round by round, in an order that moves on by one each round"
        order = f"programs run {turns if by_turns else self.order}, "
        pause = (
            f"{self.pause_ms:g} ms apart or more, until this process is idle, "
            if self.pause_ms
            else ""
        )
        return (
            "Each program's result is held against float64 before it is timed, in the very mode that is timed. After a "
            f"warm-up and a round that does not count {order}about {self.seconds:g} s a model (less for its parts) and "
            f"at least {self.least_rounds} samples a program, "
            f"{pause}on random inputs; the baseline once more at the end. A case is called "
            "disturbed if the middle half of a program's samples is wider than "
            f"{self.spread_bound:.0%} of their median, if the baseline moved by more than {self.drift_bound:.0%}, "
            "or if others took more than "
            f"{self.share_bound:.0%} of the processors." + gpu
        )


Sampler = Callable[[], tuple[float, float]]


def sampler(
    program: Program, inputs: Sequence[Any], device: torch.device, layer: str, cache: str
) -> Sampler:
    """A function that times once: (milliseconds until a call's result is there, the same of calls not waited for)."""
    if device.type == "cuda":
        return _on_cuda(program, inputs, device, layer, cache)
    estimate = _once_ms(program, inputs)
    if cache == "cold":
        flush = flusher(device)

        def cold() -> tuple[float, float]:
            flush()
            ms = _once_ms(program, inputs)
            return ms, ms

        return cold
    repeats = max(1, math.ceil(SAMPLE_MS / estimate))
    wake = math.ceil(WAKE_MS / estimate) if estimate < SHORT_MS else 0

    def sample() -> tuple[float, float]:
        with program.held():
            for _ in range(wake):
                program.call(*inputs)
            begin = time.perf_counter()
            for _ in range(repeats):
                program.call(*inputs)
            ms = (time.perf_counter() - begin) * 1e3 / repeats
        return ms, ms

    return sample


def _once_ms(program: Program, inputs: Sequence[Any]) -> float:
    with program.held():
        begin = time.perf_counter()
        program.call(*inputs)
        return (time.perf_counter() - begin) * 1e3


def flusher(device: torch.device) -> Callable[[], object]:
    """Touches more memory than the last cache holds, when it is called."""
    if device.type == "cuda":
        nbytes = torch.cuda.get_device_properties(device).L2_cache_size
    else:
        nbytes = last_level_cache()
    memory = torch.zeros(2 * nbytes // 4, device=device)
    return lambda: memory.add_(1.0)


def _on_cuda(
    program: Program, inputs: Sequence[Any], device: torch.device, layer: str, cache: str
) -> Sampler:
    def call() -> None:
        program.call(*inputs)

    if layer == "operation":
        # what runs ahead hides the launches; it is also what leaves the cache cold or warm
        flush = flusher(device)
        flushes = math.ceil(HIDDEN_MS * 1e3 / elapsed_us(flush, flush))
        calls = 2 if cache == "warm" else 0

        def ahead() -> None:
            for _ in range(flushes):
                flush()
            for _ in range(calls):
                call()

        def launch() -> tuple[float, float]:
            with program.held():
                ms = elapsed_us(call, ahead) / 1e3
            return ms, ms

        return launch
    with program.held():
        call()
        estimate = elapsed_us(call) / 1e3
    repeats = max(2, min(50, math.ceil(SAMPLE_MS / estimate)))

    def burst() -> None:
        for _ in range(repeats):
            call()

    def sample() -> tuple[float, float]:
        with program.held():
            if estimate < SHORT_MS:
                call()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            call()
            torch.cuda.synchronize()
            latency = (time.perf_counter() - begin) * 1e3
            return latency, elapsed_us(burst, call) / 1e3 / repeats

    return sample


def rest(pause_ms: float) -> None:
    """Pauses of so many ms, until this process is idle for one of them."""
    for _ in range(MOST_PAUSES if pause_ms else 0):
        busy = time.process_time()
        time.sleep(pause_ms / 1e3)
        if time.process_time() - busy <= IDLE * pause_ms / 1e3:
            return


def in_turn(
    samplers: Mapping[str, Sampler],
    method: Method,
    layer: str = "model",
    lost: Callable[[str, Exception], None] | None = None,
) -> dict[str, tuple[list[float], list[float]]]:
    """Samples of each program, of single calls and of calls not waited for, in the order in which they came.

    A round that does not count comes first: behind what was done to the other programs, memory is taken anew.
    lost: is told of a program that fails, which is left out from there on; None: its error is raised.
    """
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in samplers}
    seconds = method.seconds * SHARE.get(layer, 1.0)
    names, begin, rounds = list(samplers), time.perf_counter(), 0
    while names and (
        rounds <= method.least_rounds
        or (time.perf_counter() - begin < seconds and rounds <= MOST_ROUNDS)
    ):
        for name in (*names[rounds % len(names) :], *names[: rounds % len(names)]):
            rest(method.pause_ms)
            try:
                sample = samplers[name]()
            except Exception as error:
                if lost is None:
                    raise
                lost(name, error)
                names.remove(name)
                del found[name]
                continue
            if rounds:
                for samples, ms in zip(found[name], sample, strict=True):
                    samples.append(ms)
        if not rounds:
            begin = time.perf_counter()
        rounds += 1
    return found


def statistics(samples: Sequence[float], bursts: Sequence[float], batch: int) -> dict[str, Any]:
    """The timed fields of a row that need no other row. See results.py."""
    ms = list(samples)
    p25, p50, p75, p90, p99 = (quantile(ms, q) for q in (0.25, 0.5, 0.75, 0.9, 0.99))
    return {
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "least_ms": min(ms),
        "samples_ms": [float(f"{t:.5g}") for t in ms],
        "spread": (p75 - p25) / p50,
        "images_s": batch / quantile(list(bursts), 0.5) * 1e3,
    }
