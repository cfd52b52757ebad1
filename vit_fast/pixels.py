"""Which pixels a ViT takes; the rest gets one line that says what was given, what was expected, what to do."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vit_fast.spec import ViTSpec
from vit_fast.weights import Normalization


class Patches(NamedTuple):
    """Patches of images of several sizes, padded to one length: what Embedding.patches and padded make.

    pixels [B, N, p * p * C], each row in the order of the weight's rows, positions [B, N, D], mask bool [B, N] or None:
    the patches that count.
    """

    pixels: Tensor
    positions: Tensor
    mask: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pixels.dtype

    @property
    def is_cuda(self) -> bool:
        """Whether all of it is on one GPU."""
        return self.pixels.is_cuda and {t.device for t in self if t is not None} == {self.device}

    @property
    def requires_grad(self) -> bool:
        return self.pixels.requires_grad or self.positions.requires_grad

    def to(self, dtype: torch.dtype) -> "Patches":
        return self._replace(pixels=self.pixels.to(dtype))


def check_pixels(
    pixels: Tensor | Patches,
    spec: ViTSpec,
    dtype: torch.dtype,
    device: torch.device,
    norm: Normalization | None,
) -> None:
    """pixels [B, C, H, W] or Patches, or a TypeError or ValueError."""
    if type(pixels) is Patches:
        return _check_patches(pixels, spec, dtype, device)
    if not isinstance(pixels, Tensor):
        # a BatchFeature is what a processor returns
        hint = (
            "pass its ['pixel_values']" if isinstance(pixels, Mapping) else "use an image processor"
        )
        raise TypeError(
            f"pixels must be a torch.Tensor [B, C, H, W], got {type(pixels).__name__}: {hint}"
        )
    if device.type == "meta":
        raise ValueError("the model is on the meta device and has no weights: load it first")
    shape, p = tuple(pixels.shape), spec.patch
    if len(shape) != 4:
        if len(shape) == 3 and spec.patch_rows:
            hint = ": images of several sizes go through model.patches(pixels, shapes, mask)"
        elif len(shape) == 3 and shape[0] != spec.channels == shape[2]:
            hint = (
                ": put the channels first and add a batch axis with pixels.permute(2, 0, 1)[None]"
            )
        else:
            hint = ": add a batch axis with pixels[None]" if len(shape) == 3 else ""
        raise ValueError(f"pixels must have 4 axes [B, C, H, W], got shape {shape}{hint}")
    if shape[1] != spec.channels:
        channels_last = shape[3] == spec.channels
        hint = ": put the channels second with pixels.permute(0, 3, 1, 2)" if channels_last else ""
        raise ValueError(
            f"pixels must have {spec.channels} channels on axis 1, got shape {shape}{hint}"
        )
    if shape[2:] != spec.image_size and any(n < p or n % p for n in shape[2:]):
        raise ValueError(
            f"height and width must be positive multiples of the patch, {p}, got {shape[2]} x {shape[3]}: "
            f"resize the images, say to {spec.image_size[0]} x {spec.image_size[1]}"
        )
    if pixels.device != device:
        raise ValueError(
            f"pixels are on {pixels.device}, the model on {device}: pass pixels.to({str(device)!r})"
        )
    if pixels.dtype == torch.uint8:
        if norm is None:
            raise ValueError(
                "uint8 pixels need the processor's rescale, mean and std, and this model has none: "
                "set model.normalization = vit_fast.Normalization(rescale, mean, std), or pass normalized float pixels"
            )
        if len(norm.mean) != spec.channels:
            raise ValueError(
                f"model.normalization is for {len(norm.mean)} channels, the model has {spec.channels}: "
                "give it one mean and std a channel"
            )
    elif pixels.dtype != dtype:
        floating = pixels.is_floating_point()
        hint = (
            f"pass pixels.to({dtype})" if floating else "pass bytes, 0 to 255, as .to(torch.uint8)"
        )
        raise ValueError(
            f"pixels are {pixels.dtype}, the model takes {dtype} or torch.uint8: {hint}"
        )


def check_floats(pixels: Tensor, axes: tuple[int | str, ...]) -> None:
    """Normalized floats with these axes, a name for one of any length; or a TypeError or ValueError."""
    if not isinstance(pixels, Tensor):
        raise TypeError(
            f"pixels must be a torch.Tensor, got {type(pixels).__name__}: use an image processor"
        )
    shape = tuple(pixels.shape)
    fits = len(shape) == len(axes) and all(type(a) is str or a == n for a, n in zip(axes, shape))
    if not fits:
        raise ValueError(f"pixels must be [{', '.join(map(str, axes))}], got {shape}")
    if not pixels.is_floating_point():
        raise ValueError(
            f"pixels are {pixels.dtype}, expected normalized floats: bytes are for images of one size"
        )


def _check_patches(
    patches: Patches, spec: ViTSpec, dtype: torch.dtype, device: torch.device
) -> None:
    if not spec.takes_patches:
        raise ValueError(f"Patches are not for a {spec.family} encoder: pass pixels [B, C, H, W]")
    pixels, positions, mask = patches
    shapes = [None if t is None else tuple(t.shape) for t in patches]
    rows, width = shapes[0][:2], spec.patch**2 * spec.channels
    if (
        shapes[:2] != [(*rows, width), (*rows, spec.dim)]
        or shapes[2] not in (None, rows)
        or (mask is not None and mask.dtype != torch.bool)
    ):
        raise ValueError(
            f"Patches have pixels {shapes[0]}, positions {shapes[1]} and mask {shapes[2]}, expected [B, N, {width}], "
            f"[B, N, {spec.dim}] and bool [B, N] or None: model.patches() or padded() makes them"
        )
    given = (pixels.dtype, pixels.device), (positions.dtype, positions.device)
    if given != ((dtype, device),) * 2 or (mask is not None and mask.device != device):
        raise ValueError(
            f"Patches are {pixels.dtype} on {pixels.device}, their positions {positions.dtype} on {positions.device}, "
            f"the model takes {dtype} on {device}: make them of pixels.to({str(device)!r}, {dtype}), by this model"
        )
