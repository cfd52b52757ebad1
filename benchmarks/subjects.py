"""The encoders that are measured: their sizes, transformers' class for each output, and inputs.

Weights are random, and what transformers initialises to 0 and 1 is random too, or it could hide mistakes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from vit_fast.workload import MODELS, Model

Inputs = dict[str, Tensor]
HF_ACTIVATION = {"gelu_tanh": "gelu_pytorch_tanh"}
# output -> the field of transformers' answer that it is
FIELDS = {
    "tokens": "last_hidden_state",
    "pooled": "pooler_output",
    "logits": "logits",
    "embedding": "image_embeds",
}


def photographs(model: Model, batch: int) -> Inputs:
    """As a processor leaves them: [B, 3, H, W], about normal."""
    return {"pixel_values": torch.randn(batch, 3, model.image, model.image)}


def naflex(model: Model, batch: int) -> Inputs:
    """Images of 16 x 16 to 12 x 21 patches in 256 rows, as SigLIP 2's processor makes them."""
    shapes = torch.tensor([(16, 16), (12, 21), (14, 18), (20, 12)])
    shapes = shapes.repeat(batch // 4 + 1, 1)[:batch]
    mask = torch.arange(256)[None, :] < shapes.prod(1)[:, None]
    pixels = torch.randn(batch, 256, 3 * model.patch**2) * mask[..., None]
    return dict(pixel_values=pixels, pixel_attention_mask=mask.int(), spatial_shapes=shapes)


@dataclass(frozen=True)
class Subject:
    """classes: output -> class of transformers. config: what its config has beside the sizes."""

    model: Model
    classes: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[Model, int], Inputs] = photographs

    @property
    def title(self) -> str:
        return self.model.name


def _base(name: str, patch: int, hf: str, prefix: int = 1, image: int = 224, **more: Any) -> Model:
    return Model(name, image, patch, 768, 12, 12, 3072, prefix=prefix, hf=hf, **more)


_VIT = dict(tokens="ViTModel", logits="ViTForImageClassification")
_SIGLIP = dict(tokens="SiglipVisionModel", pooled="SiglipVisionModel")
_CLIP = dict(tokens="CLIPVisionModel", embedding="CLIPVisionModelWithProjection")
_DINOV2 = dict(tokens="Dinov2Model", pooled="Dinov2Model")
# DINOv2 is trained at 518 pixels, and its positions are resized to what it is given
_AT_518 = dict(image_size=518)

SUBJECTS: Mapping[str, Subject] = {
    "vit-b-16": Subject(MODELS["vit-b-16"], _VIT),
    "vit-l-16": Subject(MODELS["vit-l-16"], _VIT),
    "deit-b-16": Subject(
        _base("DeiT-B/16-224 distilled", 16, "DeiTModel", prefix=2),
        dict(tokens="DeiTModel", logits="DeiTForImageClassificationWithTeacher"),
    ),
    "ijepa-b-14": Subject(
        _base("I-JEPA at base size, 14-224", 14, "IJepaModel", prefix=0), dict(tokens="IJepaModel")
    ),
    "dinov2-b-14": Subject(_base("DINOv2-B/14-224", 14, "Dinov2Model"), _DINOV2, _AT_518),
    "dinov2-b-14-518": Subject(MODELS["dinov2-b-14-518"], _DINOV2),
    "dinov2-l-14-518": Subject(MODELS["dinov2-l-14-518"], _DINOV2),
    "dinov2-g-14": Subject(MODELS["dinov2-g-14"], _DINOV2, _AT_518),
    "dinov2-b-14-registers": Subject(
        _base("DINOv2-B/14-224 registers", 14, "Dinov2WithRegistersModel", prefix=5),
        dict(tokens="Dinov2WithRegistersModel", pooled="Dinov2WithRegistersModel"),
        _AT_518,
    ),
    "dinov3-b-16": Subject(
        MODELS["dinov3-b-16"], dict(tokens="DINOv3ViTModel", pooled="DINOv3ViTModel")
    ),
    "clip-b-16": Subject(
        _base("CLIP-B/16-224", 16, "CLIPVisionModel", activation="quick_gelu"), _CLIP
    ),
    "clip-l-14": Subject(MODELS["clip-l-14"], _CLIP),
    "clip-l-14-336": Subject(MODELS["clip-l-14-336"], _CLIP),
    "siglip-b-16": Subject(MODELS["siglip-b-16"], _SIGLIP),
    "so400m-14-384": Subject(MODELS["so400m-14-384"], _SIGLIP),
    "siglip2-b-16-naflex": Subject(
        _base("SigLIP2-B/16 NaFlex 256", 16, "Siglip2VisionModel", 0, 256, activation="gelu_tanh"),
        dict(tokens="Siglip2VisionModel", pooled="Siglip2VisionModel"),
        inputs=naflex,
    ),
    # for tests: everything in a second
    "toy": Subject(Model("Toy", 32, 8, 64, 2, 2, 128), _VIT),
}


def sizes(model: Model, cls: str) -> dict[str, Any]:
    """The config of a class of transformers for these sizes, without a head that it would compute beside the tokens."""
    found: dict[str, Any] = dict(
        hidden_size=model.dim,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        intermediate_size=model.mlp,
        image_size=model.image,
        patch_size=model.patch,
        hidden_act=HF_ACTIVATION.get(model.activation, model.activation),
    )
    if cls.startswith("Siglip2"):
        # positions of a square grid; images have as many patches as they have
        found["num_patches"] = model.patches
    if cls.startswith("Siglip"):
        found["vision_use_head"] = False
    if cls.startswith("Dinov2"):
        # a gated layer is made two thirds as wide as that
        ratio = round(model.mlp / model.dim * (1.5 if model.gated else 1))
        found |= dict(mlp_ratio=ratio, use_swiglu_ffn=model.gated)
    if cls == "Dinov2WithRegistersModel" or cls.startswith("DINOv3"):
        found["num_register_tokens"] = model.prefix - 1
    if cls.startswith("DINOv3"):
        found["use_gated_mlp"] = model.gated
    return found


@torch.no_grad()
def make(key: str, output: str, seed: int = 0) -> PreTrainedModel:
    """transformers' model of a subject, fp32 on the CPU, eval mode, eager attention.

    KeyError for a subject or an output that is not known.
    """
    subject = SUBJECTS[key]
    name = subject.classes[output]
    cls = getattr(transformers, name)
    config = {**sizes(subject.model, name), **subject.config}
    if output == "pooled" and "vision_use_head" in config:
        config["vision_use_head"] = True
    if output == "logits":
        config["num_labels"] = 1000
    options = {"add_pooling_layer": False} if output == "tokens" and _pools(name) else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(cls.config_class(**config, attn_implementation="eager"), **options)
        for p in model.parameters():
            if p.dim() == 1:
                p += 0.1 * torch.randn_like(p)
    return model.eval()


def _pools(cls: str) -> bool:
    return cls in ("ViTModel", "DeiTModel", "IJepaModel")


def inputs(key: str, batch: int, seed: int = 1) -> Inputs:
    """Of `batch` images, fp32 on the CPU."""
    subject = SUBJECTS[key]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return subject.inputs(subject.model, batch)
