"""ViTSpec: what distinguishes one Vision Transformer encoder from another, as data.

families/ makes it from a Hugging Face model, model.py builds the runtime from it. A new family adds
fields with defaults.
"""

from dataclasses import dataclass

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu")  # those that ops.linear takes
POOLER_ACTIVATIONS = ("tanh", "relu", "gelu", "sigmoid", "silu")  # functions of torch.nn.functional


@dataclass(frozen=True)
class ViTSpec:
    """A pre-norm encoder: patches + class token, `depth` blocks of attention and MLP, a final LayerNorm.

    Sizes in pixels are (height, width). ValueError for values that no encoder can have.
    """

    family: str
    image_size: tuple[int, int]  # the size whose position table the weights hold
    patch: int
    channels: int
    dim: int  # D
    depth: int  # blocks
    heads: int
    head_dim: int
    mlp_dim: int
    eps: float
    activation: str = "gelu"
    qkv_bias: bool = True
    prefix_tokens: int = 1  # R, the class token first
    pooler_dim: int | None = None  # None: pooled output is the class token itself
    pooler_activation: str = "tanh"
    num_labels: int = 0  # 0: no classification head

    def __post_init__(self) -> None:
        for name in (
            "patch",
            "channels",
            "dim",
            "depth",
            "heads",
            "head_dim",
            "mlp_dim",
            "prefix_tokens",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"ViTSpec: {name} must be at least 1, got {getattr(self, name)}")
        if self.eps <= 0:
            raise ValueError(f"ViTSpec: eps must be positive, got {self.eps}")
        if min(self.image_size) < self.patch:
            raise ValueError(
                f"ViTSpec: image_size {self.image_size} holds no patch of {self.patch} x {self.patch}"
            )
        for name, known in (("activation", ACTIVATIONS), ("pooler_activation", POOLER_ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"ViTSpec: {name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )

    @property
    def inner_dim(self) -> int:
        """Width of q, k and v, all heads together; D in nearly every checkpoint."""
        return self.heads * self.head_dim

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Patches (down, across) of an image of `size`; of the native size if None."""
        height, width = size or self.image_size
        return height // self.patch, width // self.patch

    def tokens(self, size: tuple[int, int] | None = None) -> int:
        """N, class token included."""
        rows, columns = self.grid(size)
        return self.prefix_tokens + rows * columns

    def flops(self, batch: int = 1, size: tuple[int, int] | None = None) -> int:
        """Multiplications and additions of the matrix products of one forward pass, two per multiply-add."""
        N = self.tokens(size)
        P = N - self.prefix_tokens
        block = 2 * N * (4 * self.dim * self.inner_dim + 2 * self.dim * self.mlp_dim)
        attention = 4 * N * N * self.inner_dim
        patches = 2 * P * self.channels * self.patch**2 * self.dim
        return batch * (self.depth * (block + attention) + patches)
