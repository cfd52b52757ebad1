"""The layers of a Vision Transformer under timm's parameter names: what they hold, and in which order ops are called.

A layer reads parameters of its own, or, inside a drop-in, the live ones of a transformers module (Linear.read).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit_fast.ops import Ops
from vit_fast.spec import ViTSpec
from vit_fast.weights import Derived


class Linear(nn.Module):
    """x [..., K] -> [..., N] through ops.linear.

    Not an nn.Linear: an adapter put around one would be added behind the fused epilogue.
    """

    def __init__(self, dim_in: int, dim_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(dim_out, dim_in))
        self.bias = nn.Parameter(torch.zeros(dim_out)) if bias else None
        self._parts: dict[str, tuple[Tensor, ...]] = {}
        self._derived = Derived()

    def read(self, name: str, parts: Sequence[Tensor]) -> None:
        """`name`, weight or bias, is from now on these live tensors, one below the other."""
        if len(parts) == 1:
            self._parts.pop(name, None)
            self._parameters[name] = parts[0]
        else:
            self._parameters[name] = None
            self._parts[name] = tuple(parts)

    def forward(self, x: Tensor, ops: Ops, out: slice | None = None, **epilogue: Any) -> Tensor:
        """`out`: the output features to compute, None for all."""
        return ops.linear(x, self._weight(ops, out), self._whole("bias", out), **epilogue)

    def _whole(self, name: str, out: slice | None) -> Tensor | None:
        parts = self._parts.get(name)
        if parts is None:
            whole = getattr(self, name)
        else:
            whole = self._derived.get(name, parts, lambda: torch.cat(parts))
        return whole if out is None or whole is None else whole[out]

    def _weight(self, ops: Ops, out: slice | None) -> Tensor:
        if ops.pack is None or torch.compiler.is_compiling():
            return self._whole("weight", out)
        parts = self._parts.get("weight") or (self.weight,)

        def build() -> Tensor:
            whole = torch.cat(parts) if len(parts) > 1 else parts[0]
            return ops.pack(whole if out is None else whole[out])

        key = ops.pack if out is None else (ops.pack, out.start, out.stop)
        return self._derived.get(key, parts, build)


class LayerNorm(nn.Module):
    """x [..., D] -> [..., D] through ops.layer_norm."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.heads, self.head_dim = spec.heads, spec.head_dim
        self.qkv = Linear(spec.dim, 3 * spec.inner_dim, spec.qkv_bias)
        self.proj = Linear(spec.inner_dim, spec.dim)

    def forward(self, x: Tensor, ops: Ops, residual: Tensor) -> Tensor:
        """x [B, N, D], residual [B, Nq, D] -> [B, Nq, D]: the first Nq tokens attend to all N."""
        B, N, _ = x.shape
        Nq, H, Dh = residual.shape[1], self.heads, self.head_dim
        if Nq == N:
            q, k, v = self.qkv(x, ops).view(B, N, 3, H, Dh).unbind(2)
        else:
            q = self.qkv(x[:, :Nq], ops, out=slice(0, H * Dh)).view(B, Nq, H, Dh)
            k, v = self.qkv(x, ops, out=slice(H * Dh, None)).view(B, N, 2, H, Dh).unbind(2)
        return self.proj(ops.attention(q, k, v, Dh**-0.5), ops, residual=residual)


class Mlp(nn.Module):
    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.activation = spec.activation
        self.fc1 = Linear(spec.dim, spec.mlp_dim)
        self.fc2 = Linear(spec.mlp_dim, spec.dim)

    def forward(self, x: Tensor, ops: Ops, residual: Tensor) -> Tensor:
        """x, residual [B, N, D] -> [B, N, D]"""
        return self.fc2(self.fc1(x, ops, activation=self.activation), ops, residual=residual)


class Block(nn.Module):
    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.norm1 = LayerNorm(spec.dim, spec.eps)
        self.attn = Attention(spec)
        self.norm2 = LayerNorm(spec.dim, spec.eps)
        self.mlp = Mlp(spec)

    def forward(self, x: Tensor, ops: Ops, rows: int | None = None) -> Tensor:
        """x [B, N, D] -> [B, N, D], or [B, rows, D]: the first tokens alone, as in the whole."""
        residual = x if rows is None else x[:, :rows]
        x = self.attn(self.norm1(x, ops), ops, residual)
        return self.mlp(self.norm2(x, ops), ops, x)


class PatchProjection(nn.Module):
    """weight [D, C, p, p] and bias [D], which ViT.embed gives to ops.patch_embed."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        D, C, p = spec.dim, spec.channels, spec.patch
        self.weight = nn.Parameter(0.02 * torch.randn(D, C, p, p))
        self.bias = nn.Parameter(torch.zeros(spec.dim))


class PatchEmbed(nn.Module):
    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.proj = PatchProjection(spec)
