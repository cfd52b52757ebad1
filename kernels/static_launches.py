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

    @property
    def tokens(self) -> int:
        return (self.image // self.patch) ** 2 + 1


MAIN = (
    Shape("ViT-B/16-224", 224, 16, 768, 12, 3072, "gelu"),
    Shape("ViT-L/16-224", 224, 16, 1024, 16, 4096, "gelu"),
    Shape("so400m/14-384", 378, 14, 1152, 16, 4304, "gelu_tanh"),
)
MORE = (
    Shape("ViT-S/8-224", 224, 8, 384, 6, 1536, "gelu"),
    Shape("CLIP-B/32-224", 224, 32, 768, 12, 3072, "quick_gelu"),
    Shape("CLIP-L/14-336", 336, 14, 1024, 16, 4096, "quick_gelu"),
    Shape("ViT-H/14-224", 224, 14, 1280, 16, 5120, "gelu"),
    Shape("ViT-g/14-224", 224, 14, 1408, 16, 6144, "gelu"),
    Shape("giant/16-384", 384, 16, 1536, 16, 6144, "gelu_tanh"),
    Shape("bigG/14-224", 224, 14, 1664, 16, 8192, "gelu"),
    Shape("7B/16-512", 512, 16, 4096, 32, 8192, "silu"),
)


def _model(s: Shape, batch: int, dtype: torch.dtype, gpu: Gpu) -> Iterator[tuple[str, Callable]]:
    """Each launch of one model as (name, call)."""

    def t(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def gemm(n: int, k: int, activation: str | None = None, residual: bool = False) -> Callable:
        x, r = t(batch, s.tokens, k), t(batch, s.tokens, n) if residual else None
        return lambda: linear.launch(x, t(n, k), t(n), activation, None, r, gpu=gpu)

    qkv = t(batch, s.tokens, 3, s.heads, s.dim // s.heads)
    q, k, v = qkv.unbind(2)
    for pixels in (torch.uint8, dtype):
        yield f"patch_embed {str(pixels)[6:]}", lambda p=pixels: patch_embed.launch(
            t(batch, 3, s.image, s.image, dtype=p), t(s.dim, 3 * s.patch**2), t(s.dim, dtype=torch.float32),
            t(1, s.dim), t(s.tokens - 1, s.dim), s.patch, gpu=gpu,
        )  # fmt: skip
    yield "layer_norm", lambda: layer_norm.launch(qkv[:, :, 0].flatten(2), t(s.dim), t(s.dim), 1e-6)
    yield "qkv", gemm(3 * s.dim, s.dim)
    yield "attention", lambda: attention.launch(q, k, v, 1.0, gpu=gpu)
    yield "attention of the class token", lambda: attention.launch(q[:, :1], k, v, 1.0, gpu=gpu)
    yield "proj", gemm(s.dim, s.dim, residual=True)
    yield "fc1", gemm(s.mlp, s.dim, s.activation)
    yield "fc2", gemm(s.dim, s.mlp, residual=True)


def _tiles(dtype: torch.dtype, gpu: Gpu) -> Iterator[tuple[str, Callable]]:
    """Every tile of `linear` with every epilogue."""

    def t(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

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


def launches(gpu: Gpu, everything: bool) -> Iterator[tuple[str, torch.dtype, Callable]]:
    """(name, dtype, call) of what ships: the main models in bf16 at batch 1 and 64, or all models,
    tiles and dtypes.
    """
    dtypes = (torch.bfloat16, torch.float16, torch.float32) if everything else (torch.bfloat16,)
    for dtype in dtypes:
        for shape in MAIN + MORE if everything else MAIN:
            for batch in (64, 1):
                for name, call in _model(shape, batch, dtype, gpu):
                    yield f"{shape.name} batch {batch} {name}", dtype, call
        if everything:
            for name, call in _tiles(dtype, gpu):
                yield name, dtype, call
