"""The encoders of Idefics2, Idefics3 and SmolVLM: SigLIP without its head, for images of any shape (NaViT, Dehghani et
al. 2023, arXiv:2307.06304).

A patch has the position of the table's row that lies nearest in fractions of the image. Images of several sizes are
padded to one; a mask says which patches are an image's.
"""

from types import ModuleType
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.idefics2 import modeling_idefics2
from transformers.models.idefics3 import modeling_idefics3
from transformers.models.smolvlm import modeling_smolvlm
from transformers.utils import ModelOutput

from vit_fast.families.calls import Answer, Defaults, Request, output_of
from vit_fast.families.family import Form
from vit_fast.families.siglip import LikeSiglip, layout_of_siglip
from vit_fast.spec import ViTSpec


class _LikeIdefics(LikeSiglip):
    """name: what the family's classes of transformers begin with."""

    fused = ("learned positions for each image", "masks of padding")
    falls_back = (
        "a mask with another attn_implementation than sdpa",
        "pixels of another dtype than the weights",
    )
    unused = ()
    resizes_on_request = False

    def __init__(self, name: str, model_type: str, modeling: ModuleType) -> None:
        tower = getattr(modeling, f"{name}VisionTransformer")
        # its class is another one in earlier releases
        self._output: type[ModelOutput] = get_args(tower.forward.__annotations__["return"])[-1]
        self._fields = tuple(self._output.__dataclass_fields__)
        self.model_type, self.modeling = model_type, modeling
        self.forms = {tower: Form(self._answer, captures=True)}
        parts = ("EncoderLayer", "VisionAttention", "VisionMLP")
        self.layouts = (layout_of_siglip(*(getattr(modeling, name + part) for part in parts)),)
        self.embeddings = getattr(modeling, f"{name}VisionEmbeddings")
        self.stack = getattr(modeling, f"{name}Encoder")
        self.watched = {self.embeddings: ("image_size", "patch_size", "num_patches_per_side")}
        # earlier releases round the fractions to the dtype of the pixels
        rounds = "dtype" in self.embeddings.forward.__code__.co_names
        self._resize = "nearest rounded" if rounds else "nearest"
        super().__init__()

    def _answer(self, model: PreTrainedModel, request: Request, found: Answer) -> ModelOutput:
        known = {"last_hidden_state": found.tokens, "hidden_states": found.states}
        return output_of(self._output, **{name: known.get(name) for name in self._fields})

    def embedding_spec(self, encoder: PreTrainedModel) -> dict[str, Any]:
        fields = super().embedding_spec(encoder)
        side = encoder.embeddings.num_patches_per_side
        if any(size // fields["patch"] != side for size in fields["image_size"]):
            raise ValueError(
                f"embeddings.num_patches_per_side is {side}, of images {fields['image_size']}"
            )
        return fields | dict(resize=self._resize)

    def request(
        self,
        spec: ViTSpec,
        device: torch.device,
        model: PreTrainedModel,
        arguments: dict[str, Any],
        defaults: Defaults,
    ) -> Request | str:
        mask = arguments.pop("patch_attention_mask", None)
        request = super().request(spec, device, model, arguments, defaults)
        if type(request) is str:
            return request
        pixels = request.pixels
        if pixels.dtype != model.embeddings.patch_embedding.weight.dtype:
            return f"pixel_values are {pixels.dtype}, unlike the weights"
        if mask is None:
            if getattr(model, "patch_size", model.config.patch_size) != spec.patch:
                return "patch_size was changed"
            return request
        if type(mask) is not Tensor or mask.dtype != torch.bool or mask.device != device:
            return "patch_attention_mask is not a plain tensor of bool, or on another device"
        shape = (len(pixels), *spec.grid(pixels.shape[-2:]))
        if mask.shape != shape or not mask.is_contiguous():
            return f"patch_attention_mask {tuple(mask.shape)} is not contiguous, of shape {shape}"
        if bool(mask.all()):
            return request
        if defaults.attention != "sdpa":
            return f"a mask for attn_implementation {defaults.attention!r}, expected 'sdpa'"
        return request._replace(mask=mask)


IDEFICS2 = _LikeIdefics("Idefics2", "idefics2_vision", modeling_idefics2)
IDEFICS3 = _LikeIdefics("Idefics3", "idefics3_vision", modeling_idefics3)
SMOLVLM = _LikeIdefics("SmolVLM", "smolvlm_vision", modeling_smolvlm)
