"""Graphed: what a ViT has because its forward pass may be replayed from a CUDA graph (graphs.py)."""

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit_fast.embedding import PatchEmbed
from vit_fast.graphs import Answer, GraphCache, Graphs
from vit_fast.layers import Attention, LayerNorm, Linear, Mlp
from vit_fast.ops import Ops
from vit_fast.parts import encode_in_parts
from vit_fast.pixels import Patches
from vit_fast.pooling import AttentionPool
from vit_fast.recorder import CudaRecorder
from vit_fast.watch import Watch, global_hooks_are_set

# plain attributes that a forward pass reads
_WATCHED = {
    LayerNorm: ("eps",),
    Mlp: ("activation", "gated"),
    Attention: ("heads", "head_dim"),
    AttentionPool: ("heads",),
}
# where the layers are that encode runs
_LAYERS = {PatchEmbed.__module__, Attention.__module__, AttentionPool.__module__}

_making = threading.Lock()


class Graphed(nn.Module):
    """Where the kernels run on CUDA, a forward pass of up to 64 images is launched as one CUDA graph.

    It is captured at the first call of its shape, or by warmup(). Batches are padded to one of 20 sizes (bucket in
    graphs.py). What is returned is copied out of the graph. A hook inside the model, a module of another class in it, a
    table of operations of your own, torch.compile, a gradient, autocast and a capture of your own mean ordinary
    launches. A model in a process that was forked after its first graph raises a RuntimeError.

    graphs: False turns them off. graph_bytes: GPU memory that they may take beside the weights, None for a quarter of
    the GPU's. recorder: what makes them, for a device. Set the last two before the first call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graphs = True
        self.graph_bytes: int | None = None
        self.recorder: type[CudaRecorder] = CudaRecorder
        self._graphs: GraphCache | None = None
        # in one that reads another module's tensors: another object after each change of them
        self._read: object | None = None
        self._watch: Watch | None = None

    def run(
        self,
        pixels: Tensor | Patches,
        ops: Ops,
        rows: int | None = None,
        keep: Collection[int | str] = (),
        dtype: torch.dtype | None = None,
    ) -> Answer:
        """As encode of the pixels in `dtype` (None: theirs), replayed from a graph where that may be."""
        dtype = dtype or pixels.dtype
        if torch.compiler.is_compiling():
            return self.encode(pixels.to(dtype), ops, rows, keep)
        if self._graphs is not None and not self.graphs:
            self.release_graphs()
            self._graphs = None
        if (
            not self.graphs
            or not self.recorder.takes(pixels, ops)
            or torch.jit.is_tracing()
            or global_hooks_are_set()
        ):
            return encode_in_parts(self, pixels.to(dtype), ops, rows, keep)
        cache = self._graphs
        if cache is None or not cache.belongs_to(self):
            with _making:
                cache = self._graphs
                if cache is None or not cache.belongs_to(self):
                    cache = self._graphs = GraphCache(self, self.recorder, self.graph_bytes)
        return cache.run(pixels, ops, rows, keep, dtype)

    def warmup(
        self, shapes: Iterable[Sequence[int]], dtype: torch.dtype | None = None, **outputs: bool
    ) -> None:
        """Captures ahead: calls features(zeros, **outputs) for each of `shapes`, (B, C, H, W).

        dtype: of the pixels to come, None for the model's. Where there are no graphs (on a CPU, above 64 images) the
        call compiles kernels and makes derived weights all the same. ValueError for what the model does not take.

        Images of several sizes in one batch: call the model once with what patches() makes, for each batch and number
        of patches to come, with a mask and without.
        """
        for shape in shapes:
            check_shape(shape)
            self.capture_now()
            with torch.inference_mode():
                pixels = torch.zeros(*shape, dtype=dtype or self.dtype, device=self.device)
                self.features(pixels, **outputs)

    def capture_now(self) -> None:
        """The next call of a shape without a graph captures one, whatever was in vain before."""
        if self._graphs is not None:
            self._graphs.capture_now()

    def graph_report(self) -> Graphs:
        """The graphs that are kept, their memory, and what runs without one."""
        cache = self._graphs
        return cache.report() if cache is not None and cache.belongs_to(self) else Graphs()

    def release_graphs(self) -> None:
        """Drops the graphs and gives their memory back. The next calls capture anew."""
        cache = self._graphs
        if cache is not None and cache.belongs_to(self):
            cache.clear()

    def tensors(self) -> list[Tensor]:
        """All that it reads, in a fixed order."""
        held = [d for m in self.modules() for d in (m._parameters, m._buffers)]
        owned = [t for d in held for t in d.values() if t is not None]
        parts = [m._parts.values() for m in self.modules() if isinstance(m, Linear)]
        return owned + [t for groups in parts for group in groups for t in group]

    def identity(self) -> object:
        """Another object once modules, tensors or settings inside are others; written memory apart."""
        return self._watched() if self._read is None else self._read

    def is_plain(self) -> bool:
        """Whether encode runs this package's layers and methods, and nothing beside them, hooks say."""
        # not a class derived from ViT, nor a copy that nn.DataParallel makes for one call
        return (
            Graphed in type(self).__bases__
            and "_is_replica" not in vars(self)
            and self.layers_are_plain()
        )

    def layers_are_plain(self) -> bool:
        parts = (self.patch_embed, self.norm_pre, self.blocks, self.norm, self.attn_pool)
        inner = [m for part in parts if part is not None for m in part.modules()]
        return all(
            type(m) is nn.ModuleList or type(m).__module__ in _LAYERS for m in inner
        ) and not any(
            m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in inner
        )

    def _watched(self) -> Watch:
        watch = self._watch
        if watch is None or not watch.unchanged():
            # without itself: it would not be freed with its last reference
            inner = [m for m in self.modules() if m is not self]
            watch = self._watch = Watch(inner, _WATCHED, root=self)
        return watch

    def _apply(self, fn: Callable, recurse: bool = True) -> Any:
        # to another device or dtype: what was made of the old weights, and holds them, goes first
        self.refresh()
        return super()._apply(fn, recurse)


def check_shape(shape: Sequence[int]) -> None:
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"a shape must be (B, C, H, W), each at least 1, got {tuple(shape)}")
