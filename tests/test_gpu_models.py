"""The GPU program's whole models: each variant can be a graph, and is checked with poisoned memory and without."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.gpu import models
from benchmarks.gpu.setting import TOY
from vit_fast import recorder
from vit_fast.ops import torch_ops, triton_ops

on_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a toy setting's kernels run interpreted"
)


@on_cpu
def test_every_variant_is_recorded(monkeypatch):
    """Launched one by one at batch 1, a variant's time is the host's, and says nothing of the kernels."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(recorder, "_pools", lambda: True)
    on_gpu = SimpleNamespace(is_cuda=True)
    hf = models.stock(TOY, TOY.main, "fp16")
    for variant in models.VARIANTS:
        vit = models.ours(TOY, hf, variant)
        assert vit.recorder.takes(on_gpu, vit.ops), variant
        assert vit.graphs == variant.graphs
    assert not vit.recorder.takes(SimpleNamespace(is_cuda=False), vit.ops)
    assert recorder.CudaRecorder.takes(on_gpu, triton_ops())
    assert not recorder.CudaRecorder.takes(on_gpu, torch_ops())


@on_cpu
def test_a_model_runs_with_poisoned_memory_and_without(monkeypatch):
    """The fills are kernels between ours: with them alone no dependent launch would ever overlap another."""
    seen = []

    class Engine:
        def release_graphs(self):
            seen.append("released")

        def __call__(self, pixels):
            seen.append(torch.are_deterministic_algorithms_enabled())
            return self.hf(pixels).last_hidden_state

    def ours(setting, hf, variant):
        engine = Engine()
        engine.hf = hf
        return engine

    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(models, "ours", ours)
    with torch.no_grad():
        row = models.outputs(TOY, 1, "tokens", "fp32", models.DEFAULT)
    assert not row["wrong"]
    times = [True] * TOY.repeats
    assert seen == ["released", *times, "released", *(not t for t in times)]
