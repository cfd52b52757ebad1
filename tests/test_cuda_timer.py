"""What the timer counts, on a model of a GPU: a queue, a host that takes its time to launch, events in the queue."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from vit_fast import cuda_timer

LAUNCH_US = 50.0  # the host's, of a graph


class Machine:
    """host, gpu: microseconds at which each is done with what it was given."""

    def __init__(self) -> None:
        self.host = self.gpu = 0.0

    def replay(self, us: float) -> None:
        self.host += LAUNCH_US
        self.gpu = max(self.gpu, self.host) + us

    def synchronize(self) -> None:
        self.host = self.gpu = max(self.host, self.gpu)

    def event(self, enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(synchronize=self.synchronize)
        event.record = lambda: setattr(event, "us", max(self.gpu, self.host))
        event.elapsed_time = lambda end: (end.us - event.us) / 1e3
        return event


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: machine.synchronize())
    monkeypatch.setattr(torch.cuda, "Event", machine.event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool=None: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", tuple)
    return machine


def test_the_host_s_launch_is_in_no_program_s_time(machine, monkeypatch):
    """Nor in that of the first, which is the rule's: a candidate as fast would beat it."""
    launch_us = [20.0, 20.0, 5.0]
    graph_us = iter([us * cuda_timer.LEAST_LAUNCHES for us in launch_us])

    def graph():
        us = next(graph_us)
        return SimpleNamespace(replay=lambda: machine.replay(us))

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    timer = cuda_timer.CudaTimer(torch.device("cuda"))
    found = timer([lambda i: None] * 3, 2, 4)
    assert found == [[pytest.approx(us)] * 4 for us in launch_us]


def test_a_call_by_itself_holds_its_launch(machine):
    assert cuda_timer.elapsed_us(lambda: machine.replay(20.0)) == LAUNCH_US + 20.0
    busy = lambda: machine.replay(1000.0)  # noqa: E731
    assert cuda_timer.elapsed_us(lambda: machine.replay(20.0), ahead=busy) == 20.0
