"""ViT: the runtime of a Vision Transformer encoder, an nn.Module with timm's parameter names.

Its layers are in layers.py, the arithmetic in ops.py, what is derived from parameters in weights.py. There is no
dropout: train() changes nothing. A drop-in runs one that reads live parameters of transformers (ViT.reading).
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_fast import weights
from vit_fast.graphed import Graphed
from vit_fast.layers import Block, LayerNorm, Linear, PatchEmbed, first
from vit_fast.ops import Ops, choose_ops, torch_ops
from vit_fast.pixels import check_pixels
from vit_fast.runtime import autocast_is_on, mode_forbids
from vit_fast.spec import ViTSpec
from vit_fast.weights import Derived, Normalization

if TYPE_CHECKING:
    from os import PathLike

    from transformers import PreTrainedModel


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


class ViT(Graphed):
    """pixels [B, C, H, W] -> tokens [B, N, D], the encoder's last_hidden_state.

    Any strides, any H and W that the patch divides: positions are interpolated as transformers does.
    Float pixels are normalized already and have the model's dtype; uint8 pixels are normalized here,
    by `normalization`. `ops` None: what choose_ops gives for the device and the dtype; and always
    PyTorch's own while a gradient is wanted.

    On a GPU a forward pass of up to 64 images is one CUDA graph: see Graphed for `graphs`, `graph_bytes` and warmup().
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

    @classmethod
    def reading(cls, spec: ViTSpec, sources: Mapping[str, Sequence[Tensor]]) -> "ViT":
        """A ViT whose parameters are live tensors of another module: timm's name -> those that make it up."""
        with torch.device("meta"):
            vit = cls(replace(spec, pooler_dim=None, num_labels=0))
        vit._layout = {name: tuple(p.shape) for name, p in vit.named_parameters()}
        vit.read(sources)
        return vit.eval()

    def read(self, sources: Mapping[str, Sequence[Tensor]]) -> None:
        """Takes live tensors in place of its parameters: timm's name -> those that make it up, on axis 0.

        ValueError where they are not those of the spec, name for name and shape for shape.
        """
        for name in self._layout.keys() | sources.keys():
            parts = sources.get(name, ())
            found = {tuple(t.shape[1:]) for t in parts}
            shape = (sum(len(t) for t in parts), *found.pop()) if len(found) == 1 else None
            if shape != self._layout.get(name):
                raise ValueError(
                    f"{name} is {[tuple(t.shape) for t in parts]} in the model, expected {self._layout.get(name)}"
                )
        before = self.tensors()
        for name, parts in sources.items():
            path, _, leaf = name.rpartition(".")
            module = self.get_submodule(path)
            if isinstance(module, Linear):
                module.read(leaf, parts)
            else:
                # not by setattr: a tensor may stand in for a parameter, as under torch.func.functional_call
                module._parameters[leaf] = parts[0]
        now = self.tensors()
        if self._read is None or [id(t) for t in now] != [id(t) for t in before]:
            self._read = object()

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

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, C, H, W] -> [B, N, D]"""
        return self.run(pixels, self._ops_for(pixels))[0]

    def encode(
        self,
        pixels: Tensor,
        ops: Ops,
        rows: int | None = None,
        keep: Collection[int] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """pixels [B, C, H, W] -> tokens after the final norm, [B, N, D], or the first `rows` of them alone.

        With them the hidden states named in `keep`, each [B, N, D]: 0 the embeddings, i what block i made of them.
        The last block computes no other row than those asked for. Nothing is checked here.
        """
        x = self.embed(pixels, ops)
        if ops.folding is not None and (
            x.dtype == torch.float32  # kernels/folding.py says why
            # what is put in a layer's place, or before it, takes tensors
            or not (torch.compiler.is_compiling() or self.layers_are_plain())
        ):
            ops = replace(ops, folding=None)
        kept = {0: x} if 0 in keep else {}
        depth, norms = len(self.blocks), [block.norm1 for block in self.blocks]
        normed = first(norms[0], x, ops)
        for i, block in enumerate(self.blocks[:-1], start=1):
            x, normed = block(x, normed, ops, norms[i])
            if i in keep:
                kept[i] = x
        # a hidden state of all rows, and the final norm of a few: no more rows are normalized than asked for
        whole = rows is not None and depth in keep
        x, normed = self.blocks[-1](
            x, normed, ops, None if whole else self.norm, None if whole else rows, fold=False
        )
        if depth in keep:
            kept[depth] = x
        return (self.norm(x[:, :rows], ops) if whole else normed), kept

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
        rows = None if tokens else int(pooled or logits)
        keep = range(self.spec.depth + 1) if hidden_states else ()
        y, kept = self.run(pixels, self._ops_for(pixels), rows, keep)
        return Features(
            tokens=y if tokens else None,
            pooled=self._pool(y[:, 0]) if pooled else None,
            hidden_states=tuple(kept.values()) if hidden_states else None,
            logits=self.head(y[:, 0]) if logits else None,
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
