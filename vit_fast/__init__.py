"""vit-fast: Vision Transformer encoders on Triton kernels, with Hugging Face weights.

from vit_fast import ViT

model = ViT.from_pretrained("google/vit-base-patch16-224", dtype=torch.bfloat16, device="cuda")
tokens = model(pixels)  # [B, 197, 768]
"""

from typing import TYPE_CHECKING, Any

from vit_fast.model import Features, ViT
from vit_fast.ops import Ops, cpu_ops, torch_ops, triton_ops
from vit_fast.spec import ViTSpec
from vit_fast.weights import Normalization

__version__ = "0.1.0"

__all__ = [
    "Features",
    "Normalization",
    "Ops",
    "ViT",
    "ViTForImageClassification",
    "ViTModel",
    "ViTSpec",
    "accelerate",
    "cpu_ops",
    "explain",
    "refresh",
    "restore",
    "torch_ops",
    "triton_ops",
    "warmup",
]

if TYPE_CHECKING:
    from transformers import ViTForImageClassification, ViTModel

    from vit_fast.drop_in import accelerate, explain, refresh, restore, warmup


def __getattr__(name: str) -> Any:
    # on first use, because importing the models of transformers takes seconds
    if name in ("accelerate", "explain", "refresh", "restore", "warmup"):
        from vit_fast import drop_in

        return getattr(drop_in, name)
    if name in __all__:
        from vit_fast.families import class_named
        from vit_fast.swap import fast_class

        return fast_class(class_named(name))
    raise AttributeError(f"module 'vit_fast' has no attribute {name!r}")
