"""Patches, images of several sizes in one batch: their positions, gradients and devices."""

import pytest
import torch

from models import NAFLEX, images, no_gradient, patches, randomize
from vit_fast import ViT, torch_ops
from vit_fast.pixels import Patches

NATIVE, SMALL, ONE = (4, 4), (2, 3), (1, 1)


@pytest.fixture
def vit() -> ViT:
    return randomize(ViT(NAFLEX, ops=torch_ops())).eval()


def test_one_grid_has_one_row_of_positions(vit):
    """Not one for each image; nor is it the model's own table, which a caller could write to."""
    for grid, length in ((NATIVE, 16), (SMALL, 16), (SMALL, 6)):
        with torch.no_grad():
            found = patches(vit, [grid] * 3, length).positions
            mixed = patches(vit, [ONE, grid, ONE], length).positions
            table, one = vit.patch_positions(grid), vit.patch_positions(ONE)
        expected = torch.cat((table, table[:1].expand(length - len(table), -1)))
        assert found.shape == (3, length, NAFLEX.dim) and found.stride(0) == 0
        assert all(torch.equal(row, expected) for row in (*found, mixed[1]))
        assert mixed[::2].eq(one).all()
        kept = [vit.pos_embed, *(kept.result for kept in vit._derived._kept.values())]
        memory = found.untyped_storage().data_ptr()
        assert memory not in [t.untyped_storage().data_ptr() for t in kept]


def test_a_gradient_to_the_positions_is_not_lost(vit):
    """They have one though the model has been frozen since: through PyTorch, not through a graph."""
    vit.ops = no_gradient()
    given = patches(vit, [NATIVE, SMALL], 16)
    vit.requires_grad_(False)
    plain = patches(vit, [NATIVE, SMALL], 16)
    with pytest.warns(UserWarning, match="a gradient is wanted"):
        assert vit(given).requires_grad
    assert not vit(plain).requires_grad


def test_the_gradient_of_the_positions(vit):
    """Of a batch it is the sum of its images'; with one grid or two."""
    for grids in ([NATIVE, SMALL, NATIVE], [SMALL] * 3):
        given = patches(vit, grids, 16)
        weight = images(*given.positions.shape)
        each = [patches(vit, [grid], 16).positions[0] for grid in grids]
        whole, *parts = (
            torch.autograd.grad((positions * w).sum(), vit.pos_embed)[0]
            for positions, w in zip([given.positions, *each], [weight, *weight])
        )
        torch.testing.assert_close(whole, sum(parts))


def test_parts_on_another_device_are_no_graphs(vit):
    """Copied into a graph's inputs they would pass, where the launches refuse them."""
    given = patches(vit, [NATIVE, SMALL], 16)

    class OnGPU:
        device, is_cuda = torch.device("cuda", 0), True

    gpu = OnGPU()
    assert Patches(gpu, gpu, gpu).is_cuda and Patches(gpu, gpu).is_cuda
    assert not Patches(gpu, gpu, given.mask).is_cuda and not Patches(gpu, given.positions).is_cuda
    assert not given.is_cuda
