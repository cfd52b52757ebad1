"""torch.compile and torch.export see one graph, whichever table runs, and what is derived stays fresh in it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import ViTForImageClassification

from models import DEVICE, NORM, hf_model, images, needs_triton, no_gradient
from vit_fast import ViT, torch_ops, triton_ops


@pytest.fixture
def vit() -> ViT:
    return ViT.from_hf(hf_model(ViTForImageClassification), NORM)


@pytest.fixture
def pixels() -> Tensor:
    return images(2, 3, 32, 32)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize(
    "ops", [None, replace(torch_ops(), differentiable=False)], ids=["chosen", "no gradient"]
)
def test_compiles_as_one_graph(vit, size, dtype, ops):
    vit.ops = ops
    vit.requires_grad_(False)
    torch.compiler.reset()
    compiled = torch.compile(vit, fullgraph=True, backend="eager")
    pixels = images(2, 3, *size, dtype=dtype)
    torch.testing.assert_close(compiled(pixels), vit(pixels), rtol=0, atol=1e-5)
    with torch.no_grad():
        vit.pos_embed.add_(1.0)
    torch.testing.assert_close(compiled(pixels), vit(pixels), rtol=0, atol=1e-5)


def test_the_look_for_triton_is_not_traced(vit, pixels, monkeypatch):
    def look(device: torch.device) -> tuple[bool, str]:
        torch._dynamo.graph_break()
        return False, "for this test"

    monkeypatch.setattr("vit_fast.ops._look_for_triton", look)
    torch.compiler.reset()
    torch.compile(vit.requires_grad_(False), fullgraph=True, backend="eager")(pixels)


@needs_triton
@pytest.mark.parametrize("chosen", [True, False])
def test_compiles_through_the_kernels(vit, pixels, chosen, monkeypatch):
    """They are custom operators: no graph break, the table given or chosen."""
    vit = vit.requires_grad_(False).to(DEVICE)
    pixels = pixels.to(DEVICE)
    vit.ops = None if chosen else triton_ops()
    monkeypatch.setattr("vit_fast.ops._runs_triton", lambda device: (True, "for this test"))
    torch.compiler.reset()
    compiled = torch.compile(vit, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pixels), vit(pixels), rtol=0, atol=1e-5)


def test_compiled_gradient(vit, pixels):
    torch.compiler.reset()
    vit.ops = no_gradient()
    torch.compile(vit, fullgraph=True, backend="aot_eager")(pixels).square().sum().backward()
    compiled = vit.pos_embed.grad.clone()
    vit.zero_grad()
    vit.ops = torch_ops()
    vit(pixels).square().sum().backward()
    torch.testing.assert_close(compiled, vit.pos_embed.grad)


@pytest.mark.slow
def test_compiles_with_inductor(vit, pixels):
    torch.compiler.reset()
    with torch.inference_mode():
        compiled = torch.compile(vit, fullgraph=True)(pixels)
        torch.testing.assert_close(compiled, vit(pixels), rtol=0, atol=1e-5)


def test_exports_with_any_batch(vit, pixels):
    vit.requires_grad_(False)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(vit, (pixels,), dynamic_shapes=({0: batch},))
    more = images(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(more), vit(more), rtol=0, atol=1e-5)
