"""Known encoders as data, and a forward pass as the list of its operations, with FLOPs and bytes counted.

What is compiled for a GPU that is not here, tuned, timed and predicted is all this one list.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A published Vision Transformer encoder. Sizes in pixels; mlp: the width of its hidden layer."""

    name: str
    image: int
    patch: int
    dim: int
    depth: int
    heads: int
    mlp: int
    activation: str = "gelu"
    prefix: int = 1  # class token and registers
    gated: bool = False  # the hidden layer is activation(gate) * up, of two products
    rope: bool = False  # attention turns q and k by rotary positions, which are not counted
    hf: str = "ViTModel"  # the class of transformers

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def tokens(self) -> int:
        return self.prefix + self.patches

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def parameters(self) -> int:
        """Weights of the matrix products; biases, norms and positions are left out."""
        mlp = (3 if self.gated else 2) * self.dim * self.mlp
        return 3 * self.patch**2 * self.dim + self.depth * (4 * self.dim**2 + mlp)


MODELS = {
    "vit-b-16": Model("ViT-B/16-224", 224, 16, 768, 12, 12, 3072),
    "vit-l-16": Model("ViT-L/16-224", 224, 16, 1024, 24, 16, 4096),
    "so400m-14-384": Model("so400m/14-384", 378, 14, 1152, 27, 16, 4304, "gelu_tanh", prefix=0, hf="SiglipVisionModel"),
    "vit-s-8": Model("ViT-S/8-224", 224, 8, 384, 12, 6, 1536),
    "clip-b-32": Model("CLIP-B/32-224", 224, 32, 768, 12, 12, 3072, "quick_gelu", hf="CLIPVisionModel"),
    "siglip-b-16": Model("SigLIP-B/16-224", 224, 16, 768, 12, 12, 3072, "gelu_tanh", prefix=0, hf="SiglipVisionModel"),
    "clip-l-14": Model("CLIP-L/14-224", 224, 14, 1024, 24, 16, 4096, "quick_gelu", hf="CLIPVisionModel"),
    "clip-l-14-336": Model("CLIP-L/14-336", 336, 14, 1024, 24, 16, 4096, "quick_gelu", hf="CLIPVisionModel"),
    "dinov2-b-14-518": Model("DINOv2-B/14-518", 518, 14, 768, 12, 12, 3072, hf="Dinov2Model"),
    "dinov2-l-14-518": Model("DINOv2-L/14-518", 518, 14, 1024, 24, 16, 4096, hf="Dinov2Model"),
    "vit-h-14": Model("ViT-H/14-224", 224, 14, 1280, 32, 16, 5120),
    "vit-g-14": Model("ViT-g/14-224", 224, 14, 1408, 40, 16, 6144),
    "siglip2-giant-16-384": Model(
        "giant/16-384", 384, 16, 1536, 40, 16, 6144, "gelu_tanh", prefix=0, hf="SiglipVisionModel"
    ),
    "clip-bigg-14": Model("bigG/14-224", 224, 14, 1664, 48, 16, 8192, hf="CLIPVisionModel"),
    "dinov2-g-14": Model("DINOv2-g/14-224", 224, 14, 1536, 40, 24, 4096, "silu", gated=True, hf="Dinov2Model"),
    "dinov3-b-16": Model("DINOv3-B/16-224", 224, 16, 768, 12, 12, 3072, prefix=5, rope=True, hf="DINOv3ViTModel"),
    "dinov3-7b-16-512": Model(
        "7B/16-512", 512, 16, 4096, 40, 32, 8192, "silu", prefix=5, gated=True, rope=True, hf="DINOv3ViTModel"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One operation of a forward pass, `count` times in it. flops and bytes are of one of them.

    shape: linear M, N, K, activation (a name or None), residual (bool); gated M, N (the hidden width), K, activation;
        attention B, H, Nq, N, D; layer_norm M, N; patch_embed B, C, P (patch), G (patches a side), D, R (prefix rows),
        uint8 (bool).
    bytes: each operand read once and each result written once.
    """

    name: str
    op: str
    count: int
    shape: Mapping[str, int | bool | str | None]
    flops: float
    bytes: float


def _linear(
    name: str, count: int, M: int, N: int, K: int, size: int, activation=None, residual=False
) -> Operation:
    moved = size * (M * K + N * K + N + M * N * (2 if residual else 1))
    shape = dict(M=M, N=N, K=K, activation=activation, residual=residual)
    return Operation(name, "linear", count, shape, 2.0 * M * N * K, moved)


def _gated(name: str, count: int, M: int, N: int, K: int, size: int, activation: str) -> Operation:
    moved = size * (M * K + 2 * (N * K + N) + M * N)
    shape = dict(M=M, N=N, K=K, activation=activation)
    return Operation(name, "gated", count, shape, 4.0 * M * N * K, moved)


def operations(
    model: Model, batch: int, itemsize: int = 2, uint8: bool = False
) -> Iterator[Operation]:
    """A forward pass of `batch` images that returns all tokens: 7 operations a block and 2 outside."""
    m, B, N, D, L = model, batch, model.tokens, model.dim, model.depth
    M, P, side = B * N, B * model.patches, m.image // m.patch
    pixels = 3 * m.patch**2
    yield Operation(
        "patch_embed",
        "patch_embed",
        1,
        dict(B=B, C=3, P=m.patch, G=side, D=D, R=m.prefix, uint8=uint8),
        2.0 * P * pixels * D,
        P * pixels * (1 if uint8 else itemsize) + itemsize * (pixels * D + N * D + M * D),
    )
    moved = itemsize * (2 * M * D + 2 * D)
    yield Operation("layer_norm", "layer_norm", 2 * L + 1, dict(M=M, N=D), 0.0, moved)
    yield _linear("qkv", L, M, 3 * D, D, itemsize)
    shape = dict(B=B, H=m.heads, Nq=N, N=N, D=m.head_dim)
    yield Operation("attention", "attention", L, shape, 4.0 * M * N * D, itemsize * 4 * M * D)
    yield _linear("proj", L, M, D, D, itemsize, residual=True)
    first = _gated if m.gated else _linear
    yield first("fc1", L, M, m.mlp, D, itemsize, activation=m.activation)
    yield _linear("fc2", L, M, D, m.mlp, itemsize, residual=True)
