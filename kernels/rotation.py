"""Rotary position embedding of patches, in plain PyTorch: the definition, and what runs where no kernel does it. No
triton here.
"""

import torch
from torch import Tensor


def rotate(x: Tensor, rope: Tensor, tokens: int) -> Tensor:
    """x [B, M, H, D], the first M of `tokens` tokens, the last P of which are patches -> the same with patches turned.

    rope [2, P, D / 2], cosines and sines: lane i turns with lane i + D / 2 (transformers' rotate_half in
    models/dinov3_vit), in fp32, or in fp64 where x is, and is rounded to x.dtype once.
    """
    M, first = x.shape[1], tokens - rope.shape[1]
    if first >= M:
        return x
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = rope[:, : M - first, None].to(dtype).unbind()  # [M - first, 1, D / 2]
    x1, x2 = x[:, first:].to(dtype).chunk(2, dim=-1)
    y = torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(x.dtype)
    return y if first == 0 else torch.cat((x[:, :first], y), dim=1)
