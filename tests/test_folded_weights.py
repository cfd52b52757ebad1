"""LayerNorm folded into a linear layer's weights: each of the three tensors fresh, and the three of one moment."""

import torch

from models import randomize
from vit_fast.layers import LayerNorm, Linear
from vit_fast.weights import Derived, Kept


def test_column_sums_are_of_the_very_weight():
    """Also where a weight is written between the two."""
    linear, norm = Linear(8, 4), LayerNorm(8, 1e-6)

    class Disturbed(Derived):
        def get(self, key, sources, build):
            result = super().get(key, sources, build)
            if key == "folded" and not disturbed:
                disturbed.append(key)
                linear.weight.mul_(2)
            return result

    disturbed, linear._derived = [], Disturbed()
    with torch.no_grad():
        linear._folded(norm, slice(None))
        for _ in range(2):
            w, sums, _ = linear._folded(norm, slice(None))
            assert torch.equal(w, linear.weight)
            torch.testing.assert_close(sums, linear.weight.sum(1))
    assert disturbed


def test_each_folded_weight_follows_its_own_sources():
    """The weights, gamma, beta and the bias, each written alone, of one or of three tensors."""
    norm = randomize(LayerNorm(8, 1e-6))
    parts = [[torch.randn(4, 8) for _ in range(3)], [torch.randn(4) for _ in range(3)]]
    read, own = Linear(8, 12), randomize(Linear(8, 12))
    read.read("weight", parts[0])
    read.read("bias", parts[1])
    x = torch.randn(5, 8)
    with torch.no_grad():
        for linear in (read, own):
            weight = parts[0] if linear is read else [own.weight]
            bias = parts[1] if linear is read else [own.bias]
            for written in (weight[0], weight[-1], norm.weight, norm.bias, bias[0], bias[-1]):
                linear._folded(norm, slice(None))
                written.add_(torch.randn_like(written))
                w, sums, b = linear._folded(norm, slice(None))
                normed = (x - x.mean(-1, keepdim=True)) * (
                    x.var(-1, correction=0, keepdim=True) + norm.eps
                ).rsqrt()
                expected = (normed * norm.weight + norm.bias) @ torch.cat(weight).T + torch.cat(
                    bias
                )
                torch.testing.assert_close(normed @ w.T + b, expected)
                torch.testing.assert_close(sums, w.sum(1))


def test_memory_that_another_stream_reads_is_not_given_away(monkeypatch):
    """Each stream is named to the allocator once."""

    class Result:
        device, named = torch.device("cuda", 0), []

        def record_stream(self, stream):
            self.named.append(stream)

    streams = [7, 7, 9, 7, 9]
    monkeypatch.setattr(
        torch._C, "_cuda_getCurrentRawStream", lambda index: streams[0], raising=False
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream {streams[0]}")
    kept = Kept([torch.zeros(1)])
    kept.result = Result()
    while streams:
        kept.read()
        streams.pop(0)
    assert Result.named == ["stream 7", "stream 9"]
