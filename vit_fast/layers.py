"""The layers of a Vision Transformer under timm's parameter names: what they hold, and in which order ops are called.

A layer reads parameters of its own, or, inside a drop-in, the live ones of a transformers module (Linear.read).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vit_fast.ops import Ops
from vit_fast.spec import ViTSpec
from vit_fast.weights import Derived, fold_norm_bias, fold_norm_weight


class Folded(NamedTuple):
    """LayerNorm(x), which is never computed: the layer that reads it is given x and its rows' statistics."""

    x: Tensor  # [B, N, D]
    stats: Tensor  # [B * N, parts, 2]
    norm: "LayerNorm"

    def first(self, rows: int) -> "Folded":
        """The first `rows` tokens of each image."""
        B, N, _ = self.x.shape
        stats = self.stats.unflatten(0, (B, N))[:, :rows].flatten(0, 1)
        return Folded(self.x[:, :rows], stats, self.norm)


def _runs_as_it_is(module: nn.Module, cls: type) -> bool:
    """Whether calling it runs cls.forward and nothing else: then that need not be called to have what it gives."""
    return (
        type(module) is cls
        and not (module._forward_hooks or module._forward_pre_hooks)
        and "forward" not in module.__dict__
    )


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

    def forward(
        self, x: Tensor | Folded, ops: Ops, out: slice | None = None, **epilogue: Any
    ) -> Tensor:
        """`out`: the output features to compute, None for all."""
        if isinstance(x, Folded):
            weights = self._folded(x.norm, slice(None) if out is None else out)
            return ops.folding.linear(x.x, x.stats, *weights, x.norm.eps, **epilogue)
        return ops.linear(x, self._weight(ops, out), self._whole("bias", out), **epilogue)

    def gated(self, x: Tensor, ops: Ops, activation: str) -> Tensor:
        """x [..., K] -> [..., N / 2], activation(gate) * up; the first half of the features is the gate."""
        weights = self._half_weight(0, ops), self._half_weight(1, ops)
        biases = self._half("bias", 0), self._half("bias", 1)
        return gated(x, ops, weights, biases, activation)

    def _half(self, name: str, i: int) -> Tensor | None:
        parts, whole = self._parts.get(name), getattr(self, name)
        if parts is not None:
            return parts[i]
        return None if whole is None else whole.chunk(2)[i]

    def _half_weight(self, i: int, ops: Ops) -> Tensor:
        half = self._half("weight", i)
        if ops.pack is None or torch.compiler.is_compiling():
            return half
        parts = self._parts.get("weight")
        sources = [self.weight if parts is None else half]
        return self._derived.get((ops.pack, "half", i), sources, lambda: ops.pack(half))

    def _folded(self, norm: "LayerNorm", out: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Weight, column sums and bias with `norm` folded in: kernels/folding.py."""
        weights = self._parts.get("weight") or (self.weight,)
        biases = self._parts.get("bias") or (() if self.bias is None else (self.bias,))
        w = self._derived.get(
            "folded", [*weights, norm.weight], lambda: fold_norm_weight(weights, norm.weight)
        )
        # of that very w: another thread may have written to the weights since
        sums = self._derived.get("column sums", [w], lambda: w.float().sum(1))
        b = self._derived.get(
            "folded bias",
            [*weights, *biases, norm.bias],
            lambda: fold_norm_bias(weights, biases, norm.bias),
        )
        return w[out], sums[out], b[out]

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


def gated(
    x: Tensor,
    ops: Ops,
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
    activation: str,
) -> Tensor:
    """Of the gate and of what it lets through, each as Ops.gated has it."""
    if ops.gated is not None:
        return ops.gated(x, *weights, *biases, activation)
    gate = ops.linear(x, weights[0], biases[0], activation=activation)
    return gate * ops.linear(x, weights[1], biases[1])


class LayerScale(nn.Module):
    """gamma [D], by which the layer before it multiplies its result (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))


class LayerNorm(nn.Module):
    """x [..., D] -> [..., D] through ops.layer_norm."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


def first(norm: nn.Module, x: Tensor, ops: Ops) -> Tensor | Folded:
    """norm(x) for the layers that read it, where no linear layer has left statistics."""
    return norm(x, ops) if ops.folding is None else Folded(x, ops.folding.statistics(x), norm)


def into(
    linear: nn.Module,
    norm: nn.Module | None,
    x: Tensor,
    ops: Ops,
    residual: Tensor,
    scale: LayerScale | None = None,
    fold: bool = True,
) -> tuple[Tensor, Tensor | Folded | None]:
    """y = residual + scale * linear(x), and norm(y) for the layers that read it; as a tensor if not `fold`."""
    plain = _runs_as_it_is(linear, Linear)
    gamma = None if scale is None else scale.gamma
    if norm is None or not (plain and _runs_as_it_is(norm, LayerNorm)):
        y = linear(x, ops, scale=gamma, residual=residual)
        return y, None if norm is None else norm(y, ops)
    w, b = linear._weight(ops, None), linear._whole("bias", None)
    if ops.folding is not None and fold:
        y, stats = ops.folding.linear_statistics(x, w, b, gamma, residual)
        return y, Folded(y, stats, norm)
    if ops.linear_norm is not None:
        return ops.linear_norm(x, w, b, gamma, residual, norm.weight, norm.bias, norm.eps)
    y = ops.linear(x, w, b, scale=gamma, residual=residual)
    return y, norm(y, ops)


class Places(NamedTuple):
    """What attention knows of its tokens beside their values."""

    mask: Tensor | None = None  # bool [B, N]: the keys that count
    rope: Tensor | None = (
        None  # [2, P, head_dim / 2]: angles of the last P tokens, see positions.rope_table
    )

    def given(self) -> dict[str, Tensor]:
        return {name: t for name, t in self._asdict().items() if t is not None}


NOWHERE = Places()


class Attention(nn.Module):
    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.heads, self.head_dim = spec.heads, spec.head_dim
        self.qkv = Linear(spec.dim, 3 * spec.inner_dim, spec.qkv_bias)
        self.proj = Linear(spec.inner_dim, spec.dim, spec.proj_bias)

    def forward(
        self, x: Tensor | Folded, ops: Ops, rows: int | None, places: Places = NOWHERE
    ) -> Tensor:
        """x [B, N, D], normalized -> [B, Nq, H * Dh]: the first `rows` tokens, or all, attend to all N."""
        B, N, _ = x.x.shape if isinstance(x, Folded) else x.shape
        H, Dh = self.heads, self.head_dim
        if rows is None or rows == N:
            q, k, v = self.qkv(x, ops).view(B, N, 3, H, Dh).unbind(2)
        else:
            first = x.first(rows) if isinstance(x, Folded) else x[:, :rows]
            q = self.qkv(first, ops, out=slice(0, H * Dh)).view(B, rows, H, Dh)
            k, v = self.qkv(x, ops, out=slice(H * Dh, None)).view(B, N, 2, H, Dh).unbind(2)
        return ops.attention(q, k, v, Dh**-0.5, **places.given())


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, activation: str, gated: bool, bias: bool) -> None:
        super().__init__()
        self.activation, self.gated = activation, gated
        self.fc1 = Linear(dim, 2 * hidden if gated else hidden, bias)
        self.fc2 = Linear(hidden, dim, bias)

    def hidden(self, x: Tensor | Folded, ops: Ops) -> Tensor:
        """x [..., D], normalized -> what fc2 reads."""
        if self.gated:
            return self.fc1.gated(x, ops, self.activation)
        return self.fc1(x, ops, activation=self.activation)


class Block(nn.Module):
    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        D = spec.dim
        self.norm1 = LayerNorm(D, spec.eps)
        self.attn = Attention(spec)
        self.ls1 = LayerScale(D) if spec.layer_scale else None
        self.norm2 = LayerNorm(D, spec.eps)
        self.mlp = Mlp(D, spec.mlp_dim, spec.activation, spec.gated, spec.mlp_bias)
        self.ls2 = LayerScale(D) if spec.layer_scale else None

    def forward(
        self,
        x: Tensor,
        normed: Tensor | Folded,
        ops: Ops,
        following: LayerNorm | None,
        rows: int | None = None,
        fold: bool = True,
        places: Places = NOWHERE,
    ) -> tuple[Tensor, Tensor | Folded | None]:
        """x [B, N, D] and norm1(x) -> y [B, N, D] and following(y), a tensor if not `fold`.

        Or the first `rows` tokens of both, as in the whole.
        """
        heads = self.attn(normed, ops, rows, places)
        residual = x if rows is None else x[:, :rows]
        # a gated layer has no folded form
        x, normed = into(
            self.attn.proj, self.norm2, heads, ops, residual, self.ls1, not self.mlp.gated
        )
        hidden = self.mlp.hidden(normed, ops)
        return into(self.mlp.fc2, following, hidden, ops, x, self.ls2, fold)
