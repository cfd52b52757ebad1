"""vit-fast: Vision Transformer encoders on Triton kernels, with Hugging Face weights.

from vit_fast import ViT

model = ViT.from_pretrained("google/vit-base-patch16-224", dtype=torch.bfloat16, device="cuda")
tokens = model(pixels)  # [B, 197, 768]
"""

from vit_fast.model import Features, ViT
from vit_fast.ops import Ops, torch_ops, triton_ops
from vit_fast.spec import ViTSpec
from vit_fast.weights import Normalization

__version__ = "0.1.0"

__all__ = ["Features", "Normalization", "Ops", "ViT", "ViTSpec", "torch_ops", "triton_ops"]
