"""Patches, images of several sizes in one batch: their positions, gradients and devices."""

from dataclasses import replace

import pytest
import torch

from models import NAFLEX, SPEC, images, no_gradient, patches, randomize
from refusals import refused
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


@pytest.mark.parametrize(
    "change, parts",
    [
        (dict(pixels=torch.zeros(2, 16, 190)), ("(2, 16, 190)", "[B, N, 192]")),
        (dict(positions=torch.zeros(2, 9, 64)), ("positions (2, 9, 64)", "[B, N, 64]")),
        (dict(mask=torch.ones(2, 9).bool()), ("mask (2, 9)", "bool [B, N]")),
        # a mask of floats would be added to the scores
        (dict(mask=torch.ones(2, 16)), ("mask (2, 16)", "bool [B, N]")),
        (dict(pixels=torch.zeros(2, 16, 192).half()), ("torch.float16", "takes torch.float32")),
        (dict(positions=torch.zeros(2, 16, 64).half()), ("positions torch.float16", "this model")),
    ],
    ids=str,
)
def test_patches_that_no_model_made(vit, change, parts):
    given = patches(vit, [NATIVE, SMALL], 16)
    assert vit(given).shape == (2, 16, 64)
    with refused(ValueError, *parts):
        vit(given._replace(**change))


def test_patches_of_another_encoder(vit):
    """Without its class token, its rotation, or the order of its channels."""
    given = patches(vit, [NATIVE], 16)
    rotated = replace(NAFLEX, patch_rows=False, positions=False, rope_theta=100.0)
    for spec in (SPEC, rotated, replace(NAFLEX, patch_rows=False, resize="bicubic")):
        with refused(ValueError, f"not for a {spec.family} encoder", "pass pixels [B, C, H, W]"):
            ViT(spec)(given)


def test_rows_of_patches_that_are_not_made_into_patches(vit):
    with refused(ValueError, "got shape (2, 16, 192)", "model.patches(pixels, shapes, mask)"):
        vit(images(2, 16, 192))
    with refused(TypeError, "got list"):
        vit.patches([1.0], [NATIVE])
