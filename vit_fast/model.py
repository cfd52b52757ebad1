"""ViT: the runtime of a Vision Transformer encoder, an nn.Module with timm's parameter names.

Parameters are held here, the arithmetic is in ops.py, what is derived from parameters in weights.py.
There is no dropout: train() changes nothing.
"""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from vit_fast import weights
from vit_fast.ops import Ops, choose_ops, torch_ops
from vit_fast.pixels import check_pixels
from vit_fast.spec import ViTSpec
from vit_fast.weights import Derived, GradWatch, Normalization

if TYPE_CHECKING:
    from os import PathLike

    from transformers import PreTrainedModel


class Linear(nn.Module):
    """x [..., K] -> [..., N] through ops.linear.

    Not an nn.Linear: an adapter put around one would be added behind the fused epilogue.
    """

    def __init__(self, dim_in: int, dim_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(dim_out, dim_in))
        self.bias = nn.Parameter(torch.zeros(dim_out)) if bias else None

    def forward(self, x: Tensor, ops: Ops, out: slice | None = None, **epilogue: Any) -> Tensor:
        """`out`: the output features to compute, None for all."""
        weight, bias = self.weight, self.bias
        if out is not None:
            weight, bias = weight[out], None if bias is None else bias[out]
        return ops.linear(x, weight, bias, **epilogue)


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


@dataclass(frozen=True)
class Features:
    """What ViT.features was asked for; the rest is None.

    tokens [B, N, D]: after the final norm. logits [B, labels].
    pooled [B, P]: the pooler's output; without a pooler the class token after the final norm.
    hidden_states: depth + 1 of [B, N, D], embeddings first, the last one before the final norm.
    """

    tokens: Tensor | None = None
    pooled: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    logits: Tensor | None = None


class ViT(nn.Module):
    """pixels [B, C, H, W] -> tokens [B, N, D], the encoder's last_hidden_state.

    Any strides, any H and W that the patch divides: positions are interpolated as transformers does.
    Float pixels are normalized already and have the model's dtype; uint8 pixels are normalized here,
    by `normalization`. `ops` None: the kernels on a GPU that runs them, else PyTorch; and always
    PyTorch while a gradient is wanted.
    """

    def __init__(
        self, spec: ViTSpec, normalization: Normalization | None = None, ops: Ops | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.ops = ops
        self.normalization = normalization
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, spec.dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, spec.tokens(), spec.dim))
        self.patch_embed = PatchEmbed(spec)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = LayerNorm(spec.dim, spec.eps)
        self.pooler = nn.Linear(spec.dim, spec.pooler_dim) if spec.pooler_dim else None
        self.head = nn.Linear(spec.dim, spec.num_labels) if spec.num_labels else None
        self._derived = Derived()
        self._grad_watch = GradWatch()
        self._warned = False

    @classmethod
    def from_pretrained(
        cls,
        model: "str | PathLike[str]",
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **hub: Any,
    ) -> "ViT":
        """A hub id or a folder -> ViT in eval mode.

        `dtype` None keeps the checkpoint's. `hub` is load.HUB_ARGUMENTS: revision, cache_dir, token, ...
        uint8 pixels are normalized by the values of the checkpoint's image processor, if it has one.
        """
        from vit_fast.load import load

        hf_model, normalization = load(model, dtype=dtype, device=device, hub=hub)
        return cls.from_hf(hf_model, normalization)

    @classmethod
    def from_hf(cls, model: "PreTrainedModel", normalization: Normalization | None = None) -> "ViT":
        """A transformers ViTModel or ViTForImageClassification -> ViT in eval mode, weights copied."""
        from vit_fast.families import bind

        spec, sources = bind(model)
        # a caller in inference mode gets parameters that know their version all the same
        with torch.inference_mode(False), torch.no_grad():
            with torch.device("meta"):
                vit = cls(spec, normalization)
            copies = {name: torch.cat(parts).contiguous() for name, parts in sources.items()}
            vit.load_state_dict(copies, assign=True)
        frozen = not any(t.requires_grad for parts in sources.values() for t in parts)
        return vit.eval().requires_grad_(not frozen)

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embed.proj.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embed.proj.weight.device

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, C, H, W] -> [B, N, D]"""
        ops = self._ops_for(pixels)
        x = self.embed(pixels, ops)
        for block in self.blocks:
            x = block(x, ops)
        return self.norm(x, ops)

    def features(
        self,
        pixels: Tensor,
        *,
        tokens: bool = True,
        pooled: bool = False,
        hidden_states: bool = False,
        logits: bool = False,
    ) -> Features:
        """pixels [B, C, H, W] -> Features, what is not asked for not computed.

        Where neither tokens nor hidden_states are, the last block computes the class token alone.
        """
        if logits and self.head is None:
            raise ValueError("logits: this model has no head, load a ViTForImageClassification")
        if not (tokens or pooled or hidden_states or logits):
            raise ValueError("nothing asked for: set tokens, pooled, hidden_states or logits")
        ops = self._ops_for(pixels)
        states = [self.embed(pixels, ops)]
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            x = block(states[-1], ops, rows=1 if last and not (tokens or hidden_states) else None)
            states = [*states, x] if hidden_states else [x]
        y = cls = None
        if tokens or pooled or logits:
            y = self.norm(states[-1] if tokens else states[-1][:, :1], ops)
            cls = y[:, 0]
        return Features(
            tokens=y if tokens else None,
            pooled=self._pool(cls) if pooled else None,
            hidden_states=tuple(states) if hidden_states else None,
            logits=self.head(cls) if logits else None,
        )

    def embed(self, pixels: Tensor, ops: Ops) -> Tensor:
        """pixels [B, C, H, W] -> [B, N, D]: the patches behind the class token, positions added."""
        spec, norm, derive = self.spec, self.normalization, self._derived.get
        R, p = spec.prefix_tokens, spec.patch
        grid = spec.grid(pixels.shape[-2:])
        w, b = self.patch_embed.proj.weight, self.patch_embed.proj.bias
        weight, bias = w.flatten(1), b
        if pixels.dtype == torch.uint8:
            weight = derive(("weight", norm), [w], lambda: weights.fold_weight(w, norm))
            bias = derive(("bias", norm), [w, b], lambda: weights.fold_bias(w, b, norm))
        cls, pos = self.cls_token, self.pos_embed
        prefix = derive("prefix", [cls, pos], lambda: cls[0] + pos[0, :R])
        if grid == spec.grid():
            patch_pos = pos[0, R:]
        else:
            patch_pos = derive(
                ("positions", grid),
                [pos],
                lambda: weights.resize_positions(pos[0, R:], spec.grid(), grid),
            )
        # at a native size that the patch does not divide, a convolution does not see the rest either
        pixels = pixels[..., : grid[0] * p, : grid[1] * p]
        return ops.patch_embed(pixels, weight, bias, prefix, patch_pos, p)

    def _pool(self, cls: Tensor) -> Tensor:
        """cls [B, D] -> [B, P]"""
        if self.pooler is None:
            return cls
        return getattr(F, self.spec.pooler_activation)(self.pooler(cls))

    def _ops_for(self, pixels: Tensor) -> Ops:
        """The table for this call: PyTorch's if a gradient is wanted that the chosen one has not."""
        check_pixels(pixels, self.spec, self.dtype, self.device, self.normalization)
        ops = self.ops or choose_ops(pixels.device, self.dtype, self.spec.head_dim)[0]
        if ops.differentiable:
            return ops
        # autocast chooses dtypes operation by operation, forward-mode AD carries tangents: PyTorch's own do
        if torch.is_autocast_enabled(pixels.device.type) or forward_ad._current_level >= 0:
            return torch_ops()
        if not torch.is_grad_enabled():
            return ops
        if torch.compiler.is_compiling():
            wanted = any(p.requires_grad for p in self.parameters())
        else:
            wanted = self._grad_watch.wanted(self)
        if not (wanted or pixels.requires_grad):
            return ops
        if not (self._warned or self.training or torch.compiler.is_compiling()):
            self._warned = True
            warnings.warn(
                f"ViT runs through PyTorch, not through {ops.name}, because a gradient is wanted: "
                "wrap the call in torch.inference_mode(), or freeze the model with requires_grad_(False)",
                stacklevel=3,
            )
        return torch_ops()
