"""LayerNorm folded into the layers behind it, in each family's encoder: every row and hidden state that can be asked
for, on the kernels."""

import copy

import pytest
import torch

from accuracy import assert_as_accurate
from models import DEVICE, NAFLEX, images, needs_triton, patches, randomize
from test_graphs_families import SPECS
from vit_fast import ViT, torch_ops, triton_ops

pytestmark = needs_triton
# what `rows` and `keep` may be
ASKED = [(None, (0, 1, 2, "pooled")), (1, (1,)), (2, ()), (0, (1,))]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def encoder(spec) -> ViT:
    vit = randomize(ViT(spec)).eval().requires_grad_(False)
    return vit.half().to(DEVICE)


def compare(vit: ViT, pixels, asked) -> None:
    """Against float64, as far as PyTorch may be."""
    exact = copy.deepcopy(vit).double()
    if isinstance(pixels, torch.Tensor):
        in_double = pixels.double()
    else:
        in_double = pixels._replace(
            pixels=pixels.pixels.double(), positions=pixels.positions.double()
        )
    for rows, keep in asked:
        found, baseline, reference = (
            model.encode(x, ops, rows, keep)
            for model, x, ops in (
                (vit, pixels, triton_ops(folded=True)),
                (vit, pixels, torch_ops()),
                (exact, in_double, torch_ops()),
            )
        )
        assert list(found[1]) == list(baseline[1])
        pairs = [(found[0], reference[0], baseline[0])] if rows != 0 else []
        pairs += [(found[1][i], reference[1][i], baseline[1][i]) for i in found[1]]
        for three in pairs:
            assert_as_accurate(*three)


@pytest.mark.parametrize("name", SPECS)
def test_encoders(name):
    vit = encoder(SPECS[name])
    asked = [a for a in ASKED if a[0] != 2 or vit.spec.distillation_token]
    compare(vit, images(2, 3, 24, 40, dtype=torch.float16).to(DEVICE), asked)


@pytest.mark.parametrize("padding", [0, 5])
def test_patches_of_siglip2(padding):
    """Rows of padding are normalized like any other."""
    vit = encoder(NAFLEX)
    pixels = patches(vit, [(3, 4), (2, 2)] if padding else [(3, 4)] * 2, 12 + padding)
    compare(vit, pixels, ASKED[:1])
