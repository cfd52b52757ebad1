"""Embedding: pixels -> tokens, the part of a ViT before its blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vit_fast import weights
from vit_fast.layers import Places
from vit_fast.ops import Ops
from vit_fast.pixels import Patches, check_floats
from vit_fast.positions import (
    NEVER_AS_IT_IS,
    nearest_positions,
    padded_positions,
    resize_positions,
    rope_frequencies,
    rope_table,
)
from vit_fast.spec import ViTSpec
from vit_fast.weights import Derived, Normalization


class PatchProjection(nn.Module):
    """weight [D, C, p, p], or [D, p * p * C] for patches that are rows, and bias [D], which ViT.embed gives to ops."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        D, C, p = spec.dim, spec.channels, spec.patch
        shape = (D, p * p * C) if spec.patch_rows else (D, C, p, p)
        self.weight = nn.Parameter(0.02 * torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(D)) if spec.patch_bias else None


class PatchEmbed(nn.Module):
    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.proj = PatchProjection(spec)


def rows(table: Tensor) -> Tensor:
    """[1, n, D], [n, D] or, for one row, [D] -> [n, D], the same memory"""
    return table.view(-1, table.shape[-1])


class Embedding:
    """What a ViT has of it; ViT makes the parameters, by timm's names. None: the encoder has no such tokens."""

    spec: ViTSpec
    normalization: Normalization | None
    # [1, n, D]; another module's, which a drop-in reads, may lack the first axes: rows() has them as tables
    cls_token: Tensor | None  # n is 1
    dist_token: Tensor | None  # n is 1
    reg_token: Tensor | None  # n is registers
    pos_embed: Tensor | None  # n is position_prefix + P
    rope_freqs: Tensor | None  # [head_dim / 4]
    _derived: Derived

    def embed(self, pixels: Tensor | Patches, ops: Ops) -> Tensor:
        """pixels [B, C, H, W] -> [B, N, D]: the patches behind the prefix tokens, positions added."""
        spec, derive, proj = self.spec, self._derived.get, self.patch_embed.proj
        w, b = proj.weight, proj.bias
        if type(pixels) is Patches:
            return ops.linear(pixels.pixels, w.flatten(1), b, residual=pixels.positions)
        p, norm = spec.patch, self.normalization
        grid = spec.grid(pixels.shape[-2:])
        if pixels.dtype == torch.uint8:
            weight = derive(
                ("weight", norm), [w], lambda: weights.fold_weight(self._filters(), norm)
            )
            sources = [w] if b is None else [w, b]
            bias = derive(
                ("bias", norm), sources, lambda: weights.fold_bias(self._filters(), b, norm)
            )
        else:
            weight, bias = w.flatten(1), b
            if spec.patch_rows:
                weight = derive("filters", [w], lambda: self._filters().flatten(1))
        # at a native size that the patch does not divide, a convolution does not see the rest either
        pixels = pixels[..., : grid[0] * p, : grid[1] * p]
        positions = self.patch_positions(grid) if spec.positions else None
        return ops.patch_embed(pixels, weight, bias, self._prefix(), positions, p)

    def _filters(self) -> Tensor:
        """[D, C, p, p]"""
        spec, w = self.spec, self.patch_embed.proj.weight
        if not spec.patch_rows:
            return w
        return w.view(-1, spec.patch, spec.patch, spec.channels).permute(0, 3, 1, 2)

    def _prefix(self) -> Tensor | None:
        """[R, D]: class token, distillation token and registers, with the positions of those that have some."""
        tokens = [t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        if not tokens:
            return None
        placed = self.spec.position_prefix if self.spec.positions else 0
        sources = [*tokens, self.pos_embed] if placed else tokens

        def build() -> Tensor:
            prefix = torch.cat([rows(t) for t in tokens])
            if not placed:
                return prefix
            return torch.cat((prefix[:placed] + rows(self.pos_embed)[:placed], prefix[placed:]))

        return rows(tokens[0]) if len(sources) == 1 else self._derived.get("prefix", sources, build)

    def patch_positions(self, grid: tuple[int, int]) -> Tensor:
        """[P, D] for patches on `grid`."""
        spec, pos = self.spec, self.pos_embed
        native = spec.grid()
        if grid == native and spec.resize not in NEVER_AS_IT_IS:
            return rows(pos)[spec.position_prefix :]

        def build() -> Tensor:
            return resize_positions(rows(pos)[spec.position_prefix :], native, grid, spec.resize)

        return self._derived.get(("positions", grid), [pos], build)

    def patches(
        self,
        pixels: Tensor,
        shapes: Tensor | Sequence[tuple[int, int]],
        mask: Tensor | None = None,
    ) -> Patches:
        """Images of several sizes in one batch, as SigLIP 2's NaFlex processor gives them -> what the model takes.

        pixels [B, N, p * p * C]: rows of patches, each with its channels last, normalized. shapes [B, 2]: patches down
        and across; what is behind their product is padding. mask [B, N]: the patches that count, None for all.
        ValueError for shapes that do not fit the pixels or the mask, and for an encoder without such patches.

        shapes and mask are read by the host, which waits for a GPU that they are on. The tables of positions are kept
        for the newest weights.SIZES grids.
        """
        spec = self.spec
        if not spec.patch_rows:
            raise ValueError(f"patches of several sizes are not for a {spec.family} encoder")
        check_floats(pixels, ("B", "N", spec.patch**2 * spec.channels))
        B, N, _ = pixels.shape
        shapes = torch.as_tensor(shapes)
        if shapes.dim() != 2 or shapes.is_floating_point():
            raise ValueError(
                f"shapes must be [B, 2], integers, got {tuple(shapes.shape)} of {shapes.dtype}"
            )
        grids = shapes.tolist()
        if (
            not B
            or len(grids) != B
            or any(len(g) != 2 or min(g) < 1 or g[0] * g[1] > N for g in grids)
        ):
            raise ValueError(
                f"shapes must be (down, across) for each of {B} images, at least 1, at most {N} patches, got {grids}"
            )
        if mask is not None:
            if mask.shape != (B, N):
                raise ValueError(f"mask must be {(B, N)}, got {tuple(mask.shape)}")
            mask = mask.bool()
            counted, fewest = torch.stack((mask.sum(), mask.sum(1).min())).tolist()
            if not fewest:
                raise ValueError("mask: an image has no patch that counts")
            mask = None if counted == B * N else mask
        grids = [tuple(grid) for grid in grids]
        tables = {grid: self.patch_positions(grid) for grid in dict.fromkeys(grids)}
        if len(tables) == 1:  # one row for all
            positions = padded_positions([tables[grids[0]]], N).expand(B, -1, -1)
        else:
            positions = padded_positions([tables[grid] for grid in grids], N)
        return Patches(pixels, positions, mask)

    def padded(self, pixels: Tensor, mask: Tensor) -> Patches:
        """Images of several sizes, padded to one, as Idefics2's processor gives them -> what the model takes.

        pixels [B, C, H, W], normalized. mask [B, h, w]: the patches that are an image's, as many down and across
        as in its first column and row. ValueError for a mask without those, and for an encoder with other positions.

        The mask is read by the host, which waits for a GPU that it is on. Positions are kept as in patches().
        """
        spec, pos, p = self.spec, self.pos_embed, self.spec.patch
        if not spec.resize.startswith("nearest"):
            raise ValueError(f"padded images are not for a {spec.family} encoder")
        check_floats(pixels, ("B", spec.channels, "H", "W"))
        whole, side = spec.grid(pixels.shape[-2:]), spec.grid()[0]
        if mask.shape != (len(pixels), *whole):
            raise ValueError(f"mask must be {(len(pixels), *whole)}, got {tuple(mask.shape)}")
        mask = mask.bool()
        grids = torch.stack((mask[:, :, 0].sum(1), mask[:, 0].sum(1)), 1).tolist()
        if not all(map(min, grids)):
            raise ValueError("mask: an image has no patch in its first row or column")

        def positions(grid: tuple[int, int]) -> Tensor:
            def build() -> Tensor:
                return nearest_positions(rows(pos), side, grid, whole, spec.resize)

            return self._derived.get(("positions", grid, whole), [pos], build)

        tables = torch.stack([positions(tuple(grid)) for grid in grids])
        mask = mask.flatten(1)
        # in place of a padding patch's own position stands the first one
        tables = torch.where(mask[..., None], tables, rows(pos)[0])
        cut = (
            pixels[..., : whole[0] * p, : whole[1] * p].unflatten(3, (-1, p)).unflatten(2, (-1, p))
        )
        return Patches(cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), tables, mask)

    def make_frequencies(self, _: object = None) -> None:
        """As the spec says: a state dict has none, and those of a model made on the meta device have no values."""
        freqs = rope_frequencies(self.spec.head_dim, self.spec.rope_theta, self.device)
        self.rope_freqs = freqs.to(self.rope_freqs.dtype)

    def places(self, pixels: Tensor | Patches) -> Places:
        """What the attention of every block is told of the tokens of these pixels."""
        if type(pixels) is Patches:
            return Places(mask=pixels.mask)
        freqs = self.rope_freqs
        if freqs is None:
            return Places()
        grid = self.spec.grid(pixels.shape[-2:])
        return Places(
            rope=self._derived.get(("rope", grid), [freqs], lambda: rope_table(grid, freqs))
        )
