"""Pooling: tokens -> one row an image and what the heads make of it, the part of a ViT behind its blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_fast.layers import LayerNorm, Linear, Mlp, Places
from vit_fast.ops import Ops, torch_ops
from vit_fast.spec import ViTSpec
from vit_fast.weights import Derived


class AttentionPool(nn.Module):
    """A learned query attends to all tokens, an MLP follows: SigLIP's head, timm's AttentionPoolLatent."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        D = spec.dim
        self.heads = spec.heads
        self.latent = nn.Parameter(0.02 * torch.randn(1, 1, D))
        self.qkv = Linear(D, 3 * D)
        self.proj = Linear(D, D)
        self.norm = LayerNorm(D, spec.eps)
        self.mlp = Mlp(D, spec.mlp_dim, spec.activation, gated=False, bias=True)
        self._derived = Derived()

    def forward(self, x: Tensor, ops: Ops, mask: Tensor | None = None) -> Tensor:
        """x [B, N, D], mask as in Places -> [B, D]"""
        B, N, D = x.shape
        H = self.heads
        sources = [self.latent, self.qkv.weight, self.qkv.bias]
        # the same for every image
        q = self._derived.get("query", sources, self._query).expand(B, -1, -1)
        k, v = self.qkv(x, ops, out=slice(D, None)).view(B, N, 2, H, D // H).unbind(2)
        heads = ops.attention(
            q.view(B, 1, H, D // H), k, v, (D // H) ** -0.5, **Places(mask).given()
        )
        # a product of a few rows reads its weights and little else: packed ones are no faster, and of thousands of
        # terms further from float64 than PyTorch's (tests/families/test_siglip.py, test_widths_of_checkpoints)
        ops = ops if ops.pack is None else torch_ops()
        x = self.proj(heads, ops)
        hidden = self.mlp.hidden(self.norm(x, ops), ops)
        return self.mlp.fc2(hidden, ops, residual=x)[:, 0]

    def _query(self) -> Tensor:
        """[1, 1, D]"""
        D = self.latent.shape[-1]
        return F.linear(self.latent, self.qkv.weight[:D], self.qkv.bias[:D])


def pool(tokens: Tensor, how: str, prefix: int, mask: Tensor | None = None) -> Tensor:
    """tokens [B, N, D], the first `prefix` no patches -> [B, D], or [B, 2 D] for "token and patches".

    how: one of spec.POOLS but "attention". mask bool [B, N]: the tokens that count; where there is one all are patches.
    """
    if how == "token":
        return tokens[:, 0]
    if mask is None:
        patches = tokens[:, prefix:].mean(1)
    else:
        counts = mask[..., None].to(tokens.dtype)
        patches = (tokens * counts).sum(1) / counts.sum(1)
    return torch.cat((tokens[:, 0], patches), 1) if how == "token and patches" else patches


class Pooling:
    """What a ViT has of it. `read`: the pooling's result where the forward pass has made it, else None."""

    spec: ViTSpec
    norm: LayerNorm
    attn_pool: AttentionPool | None
    pooler: nn.Linear | None
    head: nn.Linear | None
    head_dist: nn.Linear | None

    def pools_in_pass(self) -> bool:
        """Whether the pooling is part of the forward pass, for the sake of its operations."""
        return self.spec.pool == "attention" or not self.spec.norm_tokens

    def pool_tokens(self, tokens: Tensor, ops: Ops, mask: Tensor | None) -> Tensor:
        """tokens [B, N, D], as ViT.encode returns them -> [B, D]"""
        spec = self.spec
        if self.attn_pool is not None:
            x = self.attn_pool(tokens, ops, mask)
        else:
            x = pool(tokens, spec.pool, spec.prefix_tokens, mask)
        return x if spec.norm_tokens else self.norm(x, ops)

    def pooled(self, tokens: Tensor, read: Tensor | None, mask: Tensor | None) -> Tensor:
        """[B, P]: behind the pooler, if there is one."""
        if read is None:
            read = pool(tokens, self.spec.pool, self.spec.prefix_tokens, mask)
        if self.pooler is None:
            return read
        return getattr(F, self.spec.pooler_activation)(self.pooler(read))

    def logits(self, tokens: Tensor, read: Tensor | None, mask: Tensor | None) -> Tensor:
        """[B, labels]"""
        spec = self.spec
        if self.head_dist is not None:
            return (self.head(tokens[:, 0]) + self.head_dist(tokens[:, 1])) / 2
        if spec.head_pool is not None or read is None:
            read = pool(tokens, spec.head_pool or spec.pool, spec.prefix_tokens, mask)
        return self.head(read)
