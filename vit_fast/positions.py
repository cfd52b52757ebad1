"""Positions: tables resized to an image, as each family of transformers does it, and the angles of rotary ones.

Everything here is derived from parameters or from sizes alone, once for a size (weights.Derived).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# ViTSpec.resize -> interpolation, antialias, and where it is made in fp32 whatever the table's dtype
_MODES = {
    "bicubic": ("bicubic", False, "nowhere"),
    "bicubic fp32": ("bicubic", False, "everywhere"),
    "bicubic antialias fp32": ("bicubic", True, "everywhere"),
    "bilinear antialias": ("bilinear", True, "cpu"),  # which has no other antialias
}
# those that are not the table itself on its own grid: the nearest row is not always a patch's own, fp32's rounding
# decides; and what is made in fp32 is rounded to it
NEVER_AS_IT_IS = ("nearest", "nearest rounded", "bilinear antialias")


def resize_positions(
    pos: Tensor, native: tuple[int, int], grid: tuple[int, int], how: str = "bicubic"
) -> Tensor:
    """pos [h * w, D] on `native` (h, w) -> [h' * w', D] on `grid`, exactly as transformers does it.

    how: one of spec.RESIZES. ValueError for a table that is not square.
    """
    if native[0] != native[1]:
        raise ValueError(
            f"positions on a grid of {native[0]} x {native[1]} patches cannot be resized to "
            f"{grid[0]} x {grid[1]}: transformers defines it for square grids only, use the native size"
        )
    if how.startswith("nearest"):
        return nearest_positions(pos, native[0], grid, grid, how)
    mode, antialias, where = _MODES[how]
    table = pos.reshape(1, *native, -1).permute(0, 3, 1, 2)
    if how == "bilinear antialias":
        # with the strides that transformers gives it, by which PyTorch chooses a loop: on a CPU one is wrong where a
        # table becomes one column
        table = table[0].unsqueeze(0)
    # float64 is rounded to fp32 where transformers does that
    table = table.float() if where in ("everywhere", pos.device.type) else table
    table = F.interpolate(table, size=grid, mode=mode, align_corners=False, antialias=antialias)
    # in rows, whatever the strides: a kernel would copy them at each call
    return table.to(pos.dtype).permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1).contiguous()


def nearest_positions(
    pos: Tensor, side: int, grid: tuple[int, int], whole: tuple[int, int], how: str = "nearest"
) -> Tensor:
    """pos [side * side, D] -> [h * w, D] on `whole` (h, w), whose first rows and columns are an image's of `grid`.

    A patch has the row that lies where it lies, in fractions of the image; one behind the image the last of its line.
    """
    # step by step as transformers' Idefics2VisionEmbeddings, and on the same device: where a patch lies on the border
    # of two rows, fp32's rounding decides, at the native size too
    bounds = torch.arange(1 / side, 1.0, 1 / side, device=pos.device)
    rows = []
    for n, count in zip(grid, whole):
        step = 1.0 / torch.tensor(n, device=pos.device)
        places = torch.arange(count, device=pos.device, dtype=torch.float32) * step
        places = torch.clamp(places, max=1.0 - 1e-6)
        places = places.to(pos.dtype) if how == "nearest rounded" else places
        rows.append(torch.bucketize(places, bounds, right=True))
    # rounded to one, a patch behind the image may come to lie on the next line, as in transformers, or behind the table
    indices = (rows[0][:, None] * side + rows[1][None, :]).flatten()
    return pos[indices.clamp(max=side * side - 1)]


def padded_positions(tables: Sequence[Tensor], length: int) -> Tensor:
    """Tables [h * w, D], one for each image -> [B, length, D]; the rows behind a table are its first one."""
    rows = [torch.cat((t, t[:1].expand(length - len(t), -1))) for t in tables]
    return torch.stack(rows)


def rope_frequencies(head_dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """[head_dim / 4]: theta^(-4i / head_dim)"""
    return 1 / theta ** torch.arange(0, 1, 4 / head_dim, dtype=torch.float32, device=device)


def rope_table(grid: tuple[int, int], frequencies: Tensor) -> Tensor:
    """[2, P, head_dim / 2]: cosines and sines of the angles that the pairs of lanes of each patch are turned by.

    The first half of the angles is of a patch's height, the second of its width, both from -1 to 1 between the image's
    edges (Simeoni et al. 2025, arXiv:2508.10104; transformers' DINOv3ViTRopePositionEmbedding). In fp32; in fp64 from
    frequencies in fp64.
    """
    device = frequencies.device
    y, x = (2.0 * (torch.arange(0.5, n, dtype=torch.float32, device=device) / n) - 1 for n in grid)
    places = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)  # [P, 2]
    angles = (2 * math.pi * places[:, :, None] * frequencies[None, None, :]).flatten(1)
    return torch.stack((angles.cos(), angles.sin()))
