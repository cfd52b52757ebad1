"""Masks and rotary tables for the attention tests, and the definition with both, written apart from the code's own."""

import torch
from torch import Tensor

from accuracy import assert_as_accurate
from tensors import DEVICE, f64, target, values
from vit_fast.kernels.attention import launch
from vit_fast.ops import torch_ops

TORCH = torch_ops().attention


def packed(B: int, N: int, H: int, D: int, dtype: torch.dtype, queries: int | None = None):
    """q, k, v as views of one projection, q of the first `queries` tokens."""
    q, k, v = values("normal", B, N, 3, H, D, seed=N + D).to(dtype).unbind(2)
    return q[:, :queries], k, v


def rope_of(P: int, D: int) -> Tensor:
    """fp32 [2, P, D / 2]: another angle for every patch and lane."""
    angles = 3 * values("normal", P, D // 2, seed=P)
    return torch.stack((angles.cos(), angles.sin())).float()


def mask_of(kind: str, B: int, N: int) -> Tensor:
    """bool [B, N]; every image's is its own, and has a key."""
    image, key = torch.arange(B, device=DEVICE)[:, None], torch.arange(N, device=DEVICE)[None, :]
    match kind:
        case "padded":  # on the right, images of 1, 1/B, 2/B .. of the tokens
            mask = key < (N * (image if B > 1 else image + 1) // max(1, B - 1)).clamp(1, N)
        case "scattered":
            mask = ((key * 7 + image * 3) % 5 < 2) | (key == (image + 1) % N)
        case "first masked":
            mask = key >= (3 + 2 * image).clamp(max=N - 1)
        case "first blocks masked":  # of 64 keys, and of those of every chunk but the last
            mask = key >= min(N - 1, 128) + 0 * image
        case "one key":
            mask = key == (N - 1 - 5 * image) % N
    assert mask.shape == (B, N) and mask.any(1).all()
    return mask


def definition(q, k, v, scale, mask=None, rope=None) -> Tensor:
    """In float64, a rotation as a product of complex numbers, a masked key as one that is not there."""
    q, k, v = f64(q, k, v)
    B, N, _, D = k.shape
    if rope is not None:
        turn = torch.complex(*rope.double().cpu())
        turn = torch.cat((turn.new_ones(N - turn.shape[0], D // 2), turn)).to(k.device)[:, None]

        def rotated(x):
            y = torch.complex(*x.split(D // 2, dim=-1)) * turn[: x.shape[1]]
            return torch.cat((y.real, y.imag), dim=-1)

        q, k = rotated(q), rotated(k)
    images = []
    for i in range(B):
        keys = slice(None) if mask is None else mask[i]
        s = torch.einsum("qhd,khd->hqk", q[i], k[i, keys]) * scale
        images.append(torch.einsum("hqk,khd->qhd", s.softmax(-1), v[i, keys]).flatten(1))
    return torch.stack(images)


def compare(q, k, v, mask=None, rope=None, arch="sm_90", config=None, call=None) -> None:
    """The kernels, or `call`, against the definition; PyTorch's own error is that of its SDPA on tensors turned in
    PyTorch.
    """
    args = q, k, v, q.shape[-1] ** -0.5, mask, rope
    y = call(*args) if call else launch(*args, gpu=target(arch), config=config)
    assert_as_accurate(y, definition(*args), TORCH(*args))
