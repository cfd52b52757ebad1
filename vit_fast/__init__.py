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

# the vision encoders of transformers, and the models around them, that this package has by the same name
MODELS = (
    "CLIPForImageClassification",
    "CLIPModel",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "DINOv3ViTBackbone",
    "DINOv3ViTModel",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTModel",
    "Dinov2Backbone",
    "Dinov2ForImageClassification",
    "Dinov2Model",
    "Dinov2WithRegistersBackbone",
    "Dinov2WithRegistersForImageClassification",
    "Dinov2WithRegistersModel",
    "IJepaForImageClassification",
    "IJepaModel",
    "Idefics3VisionTransformer",
    "Siglip2ForImageClassification",
    "Siglip2Model",
    "Siglip2VisionModel",
    "SiglipForImageClassification",
    "SiglipModel",
    "SiglipVisionModel",
    "SmolVLMVisionTransformer",
    "ViTForImageClassification",
    "ViTModel",
)

__all__ = [
    "Features",
    "Normalization",
    "Ops",
    "ViT",
    "ViTSpec",
    "accelerate",
    "cpu_ops",
    "explain",
    "refresh",
    "restore",
    "torch_ops",
    "triton_ops",
    "warmup",
    *MODELS,
]

if TYPE_CHECKING:
    from vit_fast.drop_in import accelerate, explain, refresh, restore, warmup


def __getattr__(name: str) -> Any:
    # on first use, because importing the models of transformers takes seconds
    if name in ("accelerate", "explain", "refresh", "restore", "warmup"):
        from vit_fast import drop_in

        return getattr(drop_in, name)
    if name in MODELS:
        from vit_fast.carriers import importable

        return importable(name)
    raise AttributeError(f"module 'vit_fast' has no attribute {name!r}")
