"""Every layer of a ViT runs as it is called, hooks and all, whatever its table of operations does in one launch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models import images
from recorder import close, recorded_vit, recorder
from vit_fast import ViT, torch_ops
from vit_fast.layers import LayerNorm, Linear
from vit_fast.ops import Folding


@pytest.fixture
def vit() -> ViT:
    return recorded_vit()


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


class Mine(nn.Module):
    """Around a layer: it knows nothing of what the tables fuse."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        assert isinstance(x, Tensor)
        return self.inner(x, *args, **kwargs)


@pytest.mark.parametrize("table", ["plain", "residual and LayerNorm in one", "folded"])
def test_hooks_and_forwards_of_every_layer_run(vit, table):
    """Also of those whose work another operation would do with its own."""
    ops, called = torch_ops(), []

    def linear_norm(x, w, b, scale, residual, *norm):
        y = ops.linear(x, w, b, None, scale, residual)
        return y, ops.layer_norm(y, *norm)

    def folded(x, stats, w, sums, b, eps, **epilogue):
        mean, rstd = stats.view(2, *x.shape[:-1], 1)
        return ops.linear((x - mean) * rstd, w, b.to(w.dtype), **epilogue)

    def statistics(x):
        return torch.stack([x.mean(-1), (x.var(-1, correction=0) + 1e-12).rsqrt()])

    def linear_statistics(*args):
        y = ops.linear(*args[:3], None, *args[3:])
        return y, statistics(y)

    if table == "residual and LayerNorm in one":
        vit.ops = replace(ops, linear_norm=linear_norm)
    elif table == "folded":
        vit.double()
        vit.ops = replace(ops, folding=Folding(statistics, linear_statistics, folded))
    pixels = images(2, 3, 32, 32, dtype=vit.dtype)
    expected = vit.encode(pixels, ops)[0]
    for _ in range(3):
        assert close(vit(pixels), expected)
    assert recorder(vit).replays == 2
    layers = {n: m for n, m in vit.named_modules() if type(m) in (Linear, LayerNorm)}
    for name, layer in layers.items():
        handle = layer.register_forward_hook(lambda m, args, y, name=name: called.append(name))
        assert close(vit(pixels), expected)
        handle.remove()
        handle = layer.register_forward_pre_hook(lambda m, args, name=name: called.append(name))
        assert close(vit(pixels), expected)
        handle.remove()
        layer.forward = lambda *args, m=layer, name=name, **kwargs: (
            called.append(name),
            type(m).forward(m, *args, **kwargs),
        )[1]
        assert close(vit(pixels), expected)
        del layer.forward
        owner, _, leaf = name.rpartition(".")
        setattr(vit.get_submodule(owner), leaf, Mine(layer))
        assert close(vit(pixels), expected)
        setattr(vit.get_submodule(owner), leaf, layer)
    assert called == [name for name in layers for _ in range(3)] and len(called) == 3 * 13
