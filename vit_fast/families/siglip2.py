"""SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786) in its NaFlex form: SigLIP for images of several sizes in a batch.

An image is a row of patches, each with its channels last, of its own grid, padded to the batch's longest; the table of
positions is resized to each grid. Padding is no key, neither in the layers nor in the pooling head. (A checkpoint of
SigLIP 2 for one size is a SiglipModel.)
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2ForImageClassification,
    Siglip2Model,
    Siglip2VisionModel,
)
from transformers.models.siglip2 import modeling_siglip2

from vit_fast.families.calls import Defaults, Request
from vit_fast.families.family import Form, Sources
from vit_fast.families.modules import child, parameters_of
from vit_fast.families.siglip import (
    LikeSiglip,
    answer_tower,
    layout_of_siglip,
)
from vit_fast.spec import ViTSpec

_GIVEN = ("pixel_attention_mask", "spatial_shapes")


class _Siglip2(LikeSiglip):
    model_type = "siglip2"
    model_types = ("siglip2_vision_model",)
    modeling = modeling_siglip2
    forms = {Siglip2VisionModel: Form(answer_tower, captures=True)}
    holders = {Siglip2ForImageClassification: "vision_model", Siglip2Model: "vision_model"}
    layouts = (
        layout_of_siglip(
            modeling_siglip2.Siglip2EncoderLayer,
            modeling_siglip2.Siglip2Attention,
            modeling_siglip2.Siglip2MLP,
        ),
    )
    embeddings = modeling_siglip2.Siglip2VisionEmbeddings
    stack = modeling_siglip2.Siglip2Encoder
    pooling = modeling_siglip2.Siglip2MultiheadAttentionPoolingHead
    watched = {
        modeling_siglip2.Siglip2VisionEmbeddings: ("patch_size", "position_embedding_size"),
        modeling_siglip2.Siglip2MultiheadAttentionPoolingHead: ("config", "num_heads"),
    }
    fused = ("learned positions for each image", "masks of padding", "MAP head")
    falls_back = ("another attn_implementation than sdpa",)
    unused = ()
    resizes_on_request = False

    def __init__(self) -> None:
        super().__init__()
        self._resize = self.embeddings.resize_positional_embeddings

    def embedding_spec(self, encoder: PreTrainedModel) -> dict[str, Any]:
        embeddings = encoder.embeddings
        p, side = embeddings.patch_size, embeddings.position_embedding_size
        width, count = (
            embeddings.patch_embedding.in_features,
            len(embeddings.position_embedding.weight),
        )
        if width % p**2 or count != side**2:
            raise ValueError(
                f"patches of {width} values, {count} positions: "
                f"expected a multiple of {p} x {p}, and {side} x {side}"
            )
        return dict(
            image_size=(side * p, side * p),
            patch=p,
            channels=width // p**2,
            patch_bias=embeddings.patch_embedding.bias is not None,
            patch_rows=True,
            class_token=False,
            position_prefix=0,
            resize="bilinear antialias",
            pool="attention" if self.pools(encoder) else "patches",
        )

    def patch_sources(self, embeddings: nn.Module) -> Sources:
        return parameters_of("patch_embed.proj", child(embeddings, "patch_embedding", nn.Linear))

    def head_sources(self, encoder: PreTrainedModel) -> Sources:
        found = super().head_sources(encoder)
        if encoder.head.num_heads != encoder.head.attention.num_heads:
            raise ValueError(
                f"head.num_heads is {encoder.head.num_heads}, "
                f"of its attention {encoder.head.attention.num_heads}"
            )
        return found

    def configs(self, model: PreTrainedModel) -> list[PreTrainedConfig]:
        heads = [model.head.config] if self.pools(model) else []
        return list({id(c): c for c in (*super().configs(model), *heads)}.values())

    def request(
        self,
        spec: ViTSpec,
        device: torch.device,
        model: PreTrainedModel,
        arguments: dict[str, Any],
        defaults: Defaults,
    ) -> Request | str:
        for name in _GIVEN:
            if name not in arguments:
                return f"{name} is missing"
        mask, shapes = map(arguments.pop, _GIVEN)
        # others make masks of other forms, which the head cannot take
        if defaults.attention != "sdpa":
            return f"attn_implementation is {defaults.attention!r}, expected 'sdpa'"
        if mask is not None and (
            type(mask) is not Tensor or mask.dim() != 2 or mask.device != device
        ):
            return "pixel_attention_mask is not a plain tensor [B, N], or on another device"
        if type(shapes) is not Tensor or shapes.dtype not in (torch.int32, torch.int64):
            return "spatial_shapes is not a plain tensor of integers"
        request = super().request(spec, device, model, arguments, defaults)
        return request if type(request) is str else request._replace(shapes=shapes, mask=mask)

    def refused_pixels(
        self,
        model: PreTrainedModel,
        spec: ViTSpec,
        device: torch.device,
        pixels: Tensor,
        resize: bool,
    ) -> str:
        if pixels.dim() != 3 or not len(pixels) or pixels.device != device:
            return f"pixel_values {tuple(pixels.shape)} on {pixels.device} do not fit the model"
        embeddings = model.embeddings
        own = "resize_positional_embeddings" in vars(embeddings)
        if own or type(embeddings).resize_positional_embeddings is not self._resize:
            return "positions are resized by a method of your own"
        return ""

    def given(self, model: PreTrainedModel, pixels: Tensor) -> dict[str, Tensor]:
        """Patches of all of them, and no padding."""
        patch = model.embeddings.patch_size
        grid = [n // patch for n in pixels.shape[-2:]]
        cut = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 3, 5, 1)
        rows = cut.flatten(3).flatten(1, 2)
        return {
            "pixel_values": rows,
            "pixel_attention_mask": torch.ones(
                rows.shape[:2], dtype=torch.int32, device=rows.device
            ),
            "spatial_shapes": torch.tensor([grid] * len(rows)),
        }


FAMILY = _Siglip2()
