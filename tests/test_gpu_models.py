"""The GPU program's whole models: each variant can be a graph, and is checked with poisoned memory and without."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.gpu import models
from benchmarks.gpu.setting import FULL, TOY
from models import images
from vit_fast import ViT, recorder
from vit_fast.ops import torch_ops, triton_ops
from vit_fast.workload import MODELS

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


@on_cpu
@pytest.mark.parametrize(
    "key", sorted({"dinov2-g-14", "dinov3-b-16", *(group.model for group in FULL.groups)})
)
def test_stock_models_are_of_the_sizes_that_are_counted(key):
    """Of their own classes, with nothing computed beside the tokens."""
    model = MODELS[key]
    small = replace(model, image=2 * model.patch)
    hf = models.stock(TOY, small, "fp32", num_hidden_layers=1)
    vit = ViT.from_hf(hf)
    spec = vit.spec
    assert type(hf).__name__ == model.hf
    sizes = ("patch", "dim", "heads", "activation", "gated")
    assert all(getattr(spec, name) == getattr(model, name) for name in sizes)
    assert (spec.mlp_dim, spec.prefix_tokens) == (model.mlp, model.prefix)
    assert spec.tokens() == model.prefix + 4 and spec.pool != "attention"
    pixels = images(1, 3, small.image, small.image)
    with torch.inference_mode():
        expected = hf(pixels).last_hidden_state
        torch.testing.assert_close(vit(pixels), expected, rtol=0, atol=1e-4)
