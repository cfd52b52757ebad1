"""ViT: the runtime of a Vision Transformer encoder, an nn.Module with timm's parameter names.

Its layers are in layers.py, the arithmetic in ops.py, what is derived from parameters in weights.py. There is no
dropout: train() changes nothing. A drop-in runs one that reads live parameters of transformers (ViT.reading).
"""

import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vit_fast.embedding import Embedding, PatchEmbed
from vit_fast.graphed import Graphed
from vit_fast.layers import Block, LayerNorm, first
from vit_fast.ops import Ops, choose_ops, torch_ops
from vit_fast.pixels import Patches, check_pixels
from vit_fast.pooling import AttentionPool, Pooling
from vit_fast.positions import rope_frequencies
from vit_fast.runtime import autocast_is_on, mode_forbids
from vit_fast.sourced import Sourced
from vit_fast.spec import ViTSpec
from vit_fast.weights import Derived, Normalization

if TYPE_CHECKING:
    from os import PathLike

    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Features:
    """What ViT.features was asked for; the rest is None.

    tokens [B, N, D]: transformers' last_hidden_state, after the final norm unless the family has none of all tokens.
    pooled [B, P]: transformers' pooler_output; where that has none, what ViTSpec.pool makes of the tokens.
    hidden_states: depth + 1 of [B, N, D], the first block's input first, the last one before the final norm.
    logits [B, labels]: of the classification head; of a CLIP with projection its image embeddings.
    """

    tokens: Tensor | None = None
    pooled: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    logits: Tensor | None = None


class ViT(Embedding, Pooling, Graphed, Sourced):
    """pixels [B, C, H, W] -> tokens [B, N, D], the encoder's last_hidden_state.

    Any strides, any H and W that the patch divides: positions are interpolated as transformers does. Images of several
    sizes in one batch, for encoders that take them: what patches() makes. Float pixels are normalized already and have
    the model's dtype; uint8 pixels are normalized here, by `normalization`. `ops` None: what choose_ops gives for the
    device and the dtype; and always PyTorch's own while a gradient is wanted.

    On a GPU a forward pass of up to 64 images is one CUDA graph: see Graphed for `graphs`, `graph_bytes` and warmup().
    """

    def __init__(
        self, spec: ViTSpec, normalization: Normalization | None = None, ops: Ops | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.ops = ops
        self.normalization = normalization
        D = spec.dim

        def rows(count: int) -> nn.Parameter | None:
            return nn.Parameter(0.02 * torch.randn(1, count, D)) if count else None

        self.cls_token = rows(spec.class_token)
        self.dist_token = rows(spec.distillation_token)
        self.reg_token = rows(spec.registers)
        patches = spec.tokens() - spec.prefix_tokens
        self.pos_embed = rows(spec.positions and spec.position_prefix + patches)
        freqs = spec.rope_theta and rope_frequencies(spec.head_dim, spec.rope_theta)
        self.register_buffer("rope_freqs", freqs, persistent=False)
        if freqs is not None:
            self.register_load_state_dict_post_hook(Embedding.make_frequencies)
        self.patch_embed = PatchEmbed(spec)
        self.norm_pre = LayerNorm(D, spec.eps) if spec.pre_norm else None
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = LayerNorm(D, spec.eps)
        self.attn_pool = AttentionPool(spec) if spec.pool == "attention" else None
        self.pooler = nn.Linear(D, spec.pooler_dim) if spec.pooler_dim else None
        width = 2 * D if (spec.head_pool or spec.pool) == "token and patches" else D
        head = (width, spec.num_labels, spec.head_bias)
        self.head = nn.Linear(*head) if spec.num_labels else None
        self.head_dist = nn.Linear(*head) if spec.num_labels and spec.distillation_head else None
        self._derived = Derived()
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
        """A vision encoder of transformers, or a model around one -> ViT in eval mode, weights copied.

        ValueError for one that is not supported; `vit-fast models` lists those that are.
        """
        from vit_fast.families import bind

        return cls.copying(*bind(model), normalization)

    @classmethod
    def from_timm(cls, model: nn.Module, normalization: Normalization | None = None) -> "ViT":
        """A VisionTransformer of timm -> ViT in eval mode, weights copied.

        vit(pixels) is its forward_features, features(pooled) forward_head(..., pre_logits=True) behind it, and
        features(logits) its forward. `normalization` None: mean and std of its pretrained_cfg. Other image sizes are
        taken as by dynamic_img_size, whether it is set or not, where the model's own is square. ValueError for one
        that is not supported: from_timm.py.
        """
        from vit_fast.from_timm import bind, normalization_of

        return cls.copying(*bind(model), normalization or normalization_of(model))

    def derived_nbytes(self) -> int:
        """Bytes held beside the parameters: what was packed, folded, summed or resized."""
        return sum(m._derived.nbytes() for m in self.modules() if hasattr(m, "_derived"))

    def refresh(self) -> None:
        """Forgets what was derived from the parameters, and the graphs that read it."""
        for m in self.modules():
            if hasattr(m, "_derived"):
                m._derived.clear()
        # last: one that another thread captures meanwhile reads what was there before
        self.release_graphs()

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embed.proj.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embed.proj.weight.device

    def forward(self, pixels: Tensor | Patches) -> Tensor:
        """pixels [B, C, H, W], or what patches() makes -> [B, N, D]"""
        return self.run(pixels, self._ops_for(pixels))[0]

    def encode(
        self,
        pixels: Tensor | Patches,
        ops: Ops,
        rows: int | None = None,
        keep: Collection[int | str] = (),
    ) -> tuple[Tensor, dict[int | str, Tensor]]:
        """pixels [B, C, H, W] -> tokens, transformers' last_hidden_state: [B, N, D], or the first `rows` of them alone.

        With them the hidden states named in `keep`, each [B, N, D]: 0 the first block's input, i what block i made of
        it; and, for "pooled", what the pooling made of the tokens, [B, D]. The last block computes no other row than
        those asked for; for no rows, no block behind the last hidden state is computed. Nothing is checked here.
        """
        places = self.places(pixels)
        x = self.embed(pixels, ops)
        if self.norm_pre is not None:
            x = self.norm_pre(x, ops)
        if ops.folding is not None and (
            x.dtype == torch.float32  # kernels/folding.py says why
            # what is put in a layer's place, or before it, takes tensors
            or not (torch.compiler.is_compiling() or self.layers_are_plain())
        ):
            ops = replace(ops, folding=None)
        kept = {0: x} if 0 in keep else {}
        depth, norms = len(self.blocks), [block.norm1 for block in self.blocks]
        last = depth if rows != 0 else max((i for i in keep if i != "pooled"), default=0)
        normed = first(norms[0], x, ops) if last else None
        for i, block in enumerate(self.blocks[: max(last - 1, 0)], start=1):
            x, normed = block(x, normed, ops, norms[i], places=places)
            if i in keep:
                kept[i] = x
        # a hidden state of all rows, and the final norm of a few: no more rows are normalized than asked for
        whole = rows == 0 or (rows is not None and depth in keep)
        fused = self.spec.norm_tokens and not whole
        if last:
            x, normed = self.blocks[last - 1](
                x,
                normed,
                ops,
                self.norm if fused else None,
                None if whole else rows,
                fold=False,
                places=places,
            )
        if last in keep:
            kept[last] = x
        y = normed if fused else x[:, :rows]
        if self.spec.norm_tokens and whole and rows:
            y = self.norm(y, ops)
        if "pooled" in keep:
            kept["pooled"] = self.pool_tokens(y, ops, places.mask)
        return y, kept

    def features(
        self,
        pixels: Tensor | Patches,
        *,
        tokens: bool = True,
        pooled: bool = False,
        hidden_states: bool = False,
        logits: bool = False,
    ) -> Features:
        """pixels [B, C, H, W] -> Features, what is not asked for not computed.

        Where neither tokens nor hidden_states are, and the pooling reads no others, the last block computes the class
        token alone.
        """
        if logits and self.head is None:
            raise ValueError(
                "logits: this model has no head, load a model for image classification"
            )
        if not (tokens or pooled or hidden_states or logits):
            raise ValueError("nothing asked for: set tokens, pooled, hidden_states or logits")
        spec = self.spec
        pools = {spec.pool} if pooled else set()
        if logits:
            pools.add(spec.head_pool or spec.pool)
        rows = None
        if not tokens and pools <= {"token"}:
            rows = 2 if logits and spec.distillation_head else len(pools)
        keep: list[int | str] = list(range(spec.depth + 1)) if hidden_states else []
        if self.pools_in_pass() and (pooled or (logits and spec.head_pool is None)):
            keep.append("pooled")
        y, kept = self.run(pixels, self._ops_for(pixels), rows, keep)
        mask = pixels.mask if type(pixels) is Patches else None
        read = kept.pop("pooled", None)
        return Features(
            tokens=y if tokens else None,
            pooled=self.pooled(y, read, mask) if pooled else None,
            hidden_states=tuple(kept.values()) if hidden_states else None,
            logits=self.logits(y, read, mask) if logits else None,
        )

    def _ops_for(self, pixels: Tensor | Patches) -> Ops:
        """The table for this call: PyTorch's if a gradient is wanted that the chosen one has not."""
        check_pixels(pixels, self.spec, self.dtype, self.device, self.normalization)
        ops = self.ops or choose_ops(pixels.device, self.dtype, self.spec.head_dim)[0]
        if ops.differentiable:
            return ops
        if autocast_is_on(pixels.device) or mode_forbids():
            return torch_ops()
        if not torch.is_grad_enabled() or not (pixels.requires_grad or self._wants_gradient()):
            return ops
        if not (self._warned or self.training or torch.compiler.is_compiling()):
            self._warned = True
            warnings.warn(
                f"ViT runs through PyTorch, not through {ops.name}, because a gradient is wanted: "
                "wrap the call in torch.inference_mode(), or freeze the model with requires_grad_(False)",
                stacklevel=3,
            )
        return torch_ops()

    def _wants_gradient(self) -> bool:
        if torch.compiler.is_compiling():
            return any(p.requires_grad for p in self.parameters())
        return self._watched().wants_gradient()
