"""timm's model on the same weights, with torch.compile: a ViT has timm's parameter names."""

import torch
from transformers import PreTrainedModel

from vit_fast import ViT

from ..task import Program, Task, Unavailable
from .compiled import behind_compile

# class of transformers -> what timm's VisionTransformer is given beside the sizes
CLASSES = {"ViTModel": {}, "ViTForImageClassification": {}}


def timm_compiled(task: Task) -> Program:
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise Unavailable(
            f"timm does not import: {error}; pip install timm, and the torchvision of this torch"
        ) from None
    except RuntimeError as error:
        # a torchvision that is not of this torch's build
        raise Unavailable(f"timm does not import: {error}") from None
    hf = getattr(task.module, "hf", None)
    name = type(hf).__name__
    if not isinstance(hf, PreTrainedModel) or name not in CLASSES:
        raise Unavailable(f"timm is compared as a whole ViT: {', '.join(CLASSES)}")
    vit = ViT.from_hf(hf)
    s = vit.spec
    model = VisionTransformer(
        img_size=s.image_size[0],
        patch_size=s.patch,
        embed_dim=s.dim,
        depth=s.depth,
        num_heads=s.heads,
        mlp_ratio=s.mlp_dim / s.dim,
        num_classes=s.num_labels,
    )
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = s.eps
    weights = {k: v for k, v in vit.state_dict().items() if not k.startswith("pooler.")}
    model.load_state_dict(weights)
    model = model.to(task.device, task.dtype).eval()
    answer = model if s.num_labels else model.forward_features
    return behind_compile(answer, task)
