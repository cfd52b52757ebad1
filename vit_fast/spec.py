"""ViTSpec: what distinguishes one Vision Transformer encoder from another, as data.

families/ makes it from a Hugging Face model, model.py builds the runtime from it. A new family adds
fields with defaults, which say what Google's ViT has.
"""

from dataclasses import dataclass

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu")  # those that ops.linear takes
POOLER_ACTIVATIONS = ("tanh", "relu", "gelu", "sigmoid", "silu")  # functions of torch.nn.functional
# how the tokens of an image become one row: the first token; the mean of the patches; both side by side; attention of
# a learned query (Zhai et al. 2022, arXiv:2106.04560, appendix)
POOLS = ("token", "patches", "token and patches", "attention")
# how a learned table of positions is resized to another grid: see positions.py
RESIZES = (
    "bicubic",
    "bicubic fp32",
    "bicubic antialias fp32",
    "bilinear antialias",
    "nearest",
    "nearest rounded",
)


@dataclass(frozen=True)
class ViTSpec:
    """A pre-norm encoder: prefix tokens + patches, `depth` blocks of attention and MLP, a final LayerNorm.

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
    mlp_dim: int  # width of the hidden layer; of a gated one, behind the gate
    eps: float
    activation: str = "gelu"
    gated: bool = False  # activation(gate) * up, as in SwiGLU (Shazeer 2020, arXiv:2002.05202)
    qkv_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    patch_bias: bool = True
    patch_rows: bool = False  # patches are rows of p * p * C values, their channels last (SigLIP 2)
    class_token: bool = True
    distillation_token: bool = False
    registers: int = 0
    positions: bool = (
        True  # a learned table, added to the patches and to the first position_prefix tokens
    )
    position_prefix: int = 1
    resize: str = "bicubic"
    rope_theta: float | None = None  # 2-D rotary positions in each block, with this base
    layer_scale: bool = False
    pre_norm: bool = False  # a LayerNorm before the first block
    norm_tokens: bool = True  # False: the final LayerNorm is of what is pooled alone
    pool: str = "token"
    pooler_dim: int | None = None  # a linear layer behind the pooling
    pooler_activation: str = "tanh"
    num_labels: int = 0  # outputs of the classification head or of the projection; 0: there is none
    head_bias: bool = True
    head_pool: str | None = (
        None  # what the head reads, before any norm of the pooled; None: what is pooled
    )
    distillation_head: bool = False  # the mean of two heads, of the first and of the second token

    def __post_init__(self) -> None:
        sizes = ("patch", "channels", "dim", "depth", "heads", "head_dim", "mlp_dim")
        least = dict.fromkeys(sizes, 1) | {"registers": 0, "num_labels": 0}
        if self.pooler_dim is not None:
            least["pooler_dim"] = 1
        for name, n in least.items():
            if getattr(self, name) < n:
                raise ValueError(f"ViTSpec: {name} must be at least {n}, got {getattr(self, name)}")
        for name in ("eps", "rope_theta"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"ViTSpec: {name} must be positive, got {value}")
        if type(self.image_size) is not tuple or len(self.image_size) != 2:
            raise ValueError(f"ViTSpec: image_size must be (height, width), got {self.image_size}")
        if min(self.image_size) < self.patch:
            raise ValueError(
                f"ViTSpec: image_size {self.image_size} holds no patch of {self.patch} x {self.patch}"
            )
        for name, known in (
            ("activation", ACTIVATIONS),
            ("pooler_activation", POOLER_ACTIVATIONS),
            ("pool", POOLS),
            ("head_pool", (None, *POOLS[:3])),
            ("resize", RESIZES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"ViTSpec: {name} must be one of {', '.join(map(str, known))}; got {getattr(self, name)!r}"
                )
        if not 0 <= self.position_prefix <= self.prefix_tokens:
            raise ValueError(
                f"ViTSpec: position_prefix is {self.position_prefix}, of {self.prefix_tokens} prefix tokens"
            )
        if self.rope_theta is not None and self.head_dim % 4:
            raise ValueError(
                f"ViTSpec: 2-D rotary positions need a head_dim that 4 divides, got {self.head_dim}"
            )

        if self.pool == "token and patches" and (self.pooler_dim or not self.norm_tokens):
            raise ValueError(
                "ViTSpec: pool 'token and patches' is twice as wide as a pooler or the final norm takes"
            )
        if self.pool == "attention" and self.dim % self.heads:
            raise ValueError(
                f"ViTSpec: {self.heads} heads pool {self.dim} channels: expected a divisor"
            )
        if self.distillation_head and not self.distillation_token:
            raise ValueError("ViTSpec: distillation_head needs a distillation_token")

    @property
    def takes_patches(self) -> bool:
        """Whether images of several sizes may be one batch, as pixels.Patches."""
        return not self.prefix_tokens and (self.patch_rows or self.resize.startswith("nearest"))

    @property
    def prefix_tokens(self) -> int:
        """R: class token, distillation token and registers, in this order."""
        return self.class_token + self.distillation_token + self.registers

    @property
    def inner_dim(self) -> int:
        """Width of q, k and v, all heads together; D in nearly every checkpoint."""
        return self.heads * self.head_dim

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Patches (down, across) of an image of `size`; of the native size if None."""
        height, width = size or self.image_size
        return height // self.patch, width // self.patch

    def tokens(self, size: tuple[int, int] | None = None) -> int:
        """N, prefix tokens included."""
        rows, columns = self.grid(size)
        return self.prefix_tokens + rows * columns

    def flops(self, batch: int = 1, size: tuple[int, int] | None = None) -> int:
        """Multiplications and additions of the matrix products of one forward pass, two per multiply-add."""
        N = self.tokens(size)
        P = N - self.prefix_tokens
        mlp = (3 if self.gated else 2) * self.dim * self.mlp_dim
        block = 2 * N * (4 * self.dim * self.inner_dim + mlp)
        attention = 4 * N * N * self.inner_dim
        patches = 2 * P * self.channels * self.patch**2 * self.dim
        return batch * (self.depth * (block + attention) + patches)
