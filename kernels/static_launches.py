"""What ships, as launches on meta tensors: the shapes that static_check.py compiles."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from . import attention, layer_norm, linear, patch_embed
from .activations import NAMES
from .tuning import Gpu


@dataclass(frozen=True)
class Shape:
    name: str
    image: int
    patch: int
    dim: int
    heads: int
    mlp: int
    activation: str
    prefix: int = 1

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2


MAIN = (
    Shape("ViT-B/16-224", 224, 16, 768, 12, 3072, "gelu"),
    Shape("ViT-L/16-224", 224, 16, 1024, 16, 4096, "gelu"),
    Shape("so400m/14-384", 378, 14, 1152, 16, 4304, "gelu_tanh", prefix=0),
)
MORE = (
    Shape("ViT-S/8-224", 224, 8, 384, 6, 1536, "gelu"),
    Shape("CLIP-B/32-224", 224, 32, 768, 12, 3072, "quick_gelu"),
    Shape("CLIP-L/14-336", 336, 14, 1024, 16, 4096, "quick_gelu"),
    Shape("ViT-H/14-224", 224, 14, 1280, 16, 5120, "gelu"),
    Shape("ViT-g/14-224", 224, 14, 1408, 16, 6144, "gelu"),
    Shape("giant/16-384", 384, 16, 1536, 16, 6144, "gelu_tanh", prefix=0),
    Shape("bigG/14-224", 224, 14, 1664, 16, 8192, "gelu"),
    Shape("7B/16-512", 512, 16, 4096, 32, 8192, "silu"),
)


def _model(s: Shape, batch: int, dtype: torch.dtype, gpu: Gpu) -> Iterator[tuple[str, Callable]]:
    """Each launch of one model as (name, call); those of a last block for the class token too."""
    N = s.prefix + s.patches

    def t(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def gemm(x: torch.Tensor, n: int, activation: str | None = None, residual=None) -> Callable:
        k = x.shape[-1]
        return lambda: linear.launch(x, t(n, k), t(n), activation, None, residual, gpu=gpu)

    def norm(x: torch.Tensor) -> Callable:
        return lambda: layer_norm.launch(x, t(s.dim), t(s.dim), 1e-6)

    for pixels in (torch.uint8, dtype):
        x = t(batch, 3, s.image, s.image, dtype=pixels)
        w, b, pos = t(s.dim, 3 * s.patch**2), t(s.dim, dtype=torch.float32), t(s.patches, s.dim)
        prefix = t(s.prefix, s.dim) if s.prefix else None
        args = (x, w, b, prefix, pos, s.patch)
        yield f"patch_embed {str(pixels)[6:]}", lambda a=args: patch_embed.launch(*a, gpu=gpu)

    q, k, v = t(batch, N, 3, s.heads, s.dim // s.heads).unbind(2)
    whole = t(batch, N, s.dim)
    for rows, of in ((whole, ""), (whole[:, :1], " of the class token")):
        fresh = t(*rows.shape)
        yield f"layer_norm{of}", norm(rows)
        yield f"qkv{of}", gemm(rows, s.dim if of else 3 * s.dim)
        queries = q[:, : rows.shape[1]]
        yield f"attention{of}", lambda q=queries: attention.launch(q, k, v, 1.0, gpu=gpu)
        yield f"proj{of}", gemm(fresh, s.dim, residual=rows)
        yield f"fc1{of}", gemm(fresh, s.mlp, s.activation)
        yield f"fc2{of}", gemm(t(*rows.shape[:2], s.mlp), s.dim, residual=fresh)


def _tiles(dtype: torch.dtype, gpu: Gpu) -> Iterator[tuple[str, Callable]]:
    """Every tile of `linear` with every epilogue."""

    def t(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    for M in (50, 1000, 50000):
        for residual in (None, t(M, 768)):
            # rows that are not 16-byte aligned, a K with a tail: pointers on every GPU
            yield (
                "linear, odd K",
                lambda m=M, r=residual: linear.launch(
                    t(m, 1001), t(768, 1001), t(768).float(), "gelu", None, r, gpu=gpu
                ),
            )
    descriptors = gpu.bulk_copies and dtype != torch.float32
    for config in linear.tiles(dtype.itemsize, descriptors):
        for activation in (None, *NAMES):
            for residual in (None, t(1024, 768)):
                for scale in (None, t(768)):
                    yield (
                        "linear",
                        lambda c=config, a=activation, s=scale, r=residual: linear.launch(
                            t(1024, 1024), t(768, 1024), t(768), a, s, r, gpu=gpu, config=c
                        ),
                    )


def _tails(dtype: torch.dtype, gpu: Gpu) -> Iterator[tuple[str, Callable]]:
    """Attention with tails of every width, for every head_dim."""
    for D in (32, 64, 72, 80, 88, 96, 104, 128):
        for N in (50, 197, 257, 729, 1370):
            q, k, v = torch.empty((2, N, 3, 16, D), dtype=dtype, device="meta").unbind(2)
            yield (
                f"attention of {N} tokens",
                lambda q=q, k=k, v=v: attention.launch(q, k, v, 1.0, gpu=gpu),
            )


def launches(gpu: Gpu, everything: bool) -> Iterator[tuple[str, torch.dtype, Callable]]:
    """(name, dtype, call) of what ships: the main models in bf16 at batch 1 and 64, or all models,
    tiles and dtypes.
    """
    dtypes = (torch.bfloat16, torch.float16, torch.float32) if everything else (torch.bfloat16,)
    for dtype in dtypes:
        for shape in MAIN + MORE if everything else MAIN:
            for batch in (64, 1):
                for name, call in _model(shape, batch, dtype, gpu):
                    suffix = "" if dtype == torch.bfloat16 else f" in {str(dtype)[6:]}"
                    yield f"{shape.name} batch {batch} {name}{suffix}", dtype, call
        if everything:
            for name, call in (*_tiles(dtype, gpu), *_tails(dtype, gpu)):
                yield name, dtype, call
