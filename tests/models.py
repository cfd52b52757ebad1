"""Hugging Face models with weights worth comparing, their float64 twins, and images."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vit_fast import Normalization, Ops, ViT, ViTSpec, onednn, torch_ops
from vit_fast.pixels import Patches

NORM = Normalization(1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# where triton_ops() runs: the GPU, else Triton's interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")
WHY_NOT_ONEDNN = onednn.why_not(torch.float32)
needs_onednn = pytest.mark.skipif(bool(WHY_NOT_ONEDNN), reason=WHY_NOT_ONEDNN)

SPEC = ViTSpec(
    family="vit",
    image_size=(32, 32),
    patch=8,
    channels=3,
    dim=64,
    depth=2,
    heads=2,
    head_dim=32,
    mlp_dim=96,
    eps=1e-12,
    pooler_dim=64,
    num_labels=5,
)

# SigLIP 2's NaFlex: images of several sizes in one batch
NAFLEX = replace(
    SPEC,
    family="siglip2",
    eps=1e-6,
    activation="gelu_tanh",
    patch_rows=True,
    class_token=False,
    position_prefix=0,
    resize="bilinear antialias",
    pool="attention",
    pooler_dim=None,
    num_labels=0,
)

TINY = dict(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=96,
    image_size=32,
    patch_size=8,
    num_labels=5,
)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """No zero bias, no unit norm, positions and class token as large as the patches; activations stay near 1."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            r = torch.randn(p.shape, generator=draw)
            if isinstance(module, nn.LayerNorm):
                r = 0.2 * r + (name == "weight")
            elif isinstance(module, nn.Embedding):
                r = 0.5 * r
            elif p.dim() in (2, 4):
                r = r / math.sqrt(p[0].numel())
            else:
                r = 0.5 * r
            p.copy_(r)
    return model


def hf_model(
    cls: type[PreTrainedModel], dtype: torch.dtype = torch.float32, seed: int = 0, **config
) -> PreTrainedModel:
    """A randomized `cls` in eval mode with eager attention; `config` changes TINY."""
    options = (
        {"add_pooling_layer": config.pop("add_pooling_layer")}
        if "add_pooling_layer" in config
        else {}
    )
    made = cls.config_class(**{**TINY, **config}, attn_implementation="eager")
    return randomize(cls(made, **options), seed).to(dtype).eval()


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in float64. Attention by SDPA: transformers' eager softmax is fp32 whatever the dtype."""
    twin = copy.deepcopy(model).double()
    twin.set_attn_implementation("sdpa")
    return twin


def images(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """[B, C, H, W], about normal; bytes for torch.uint8."""
    draw = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=draw, dtype=dtype)
    return torch.randn(shape, generator=draw).to(dtype)


def patches(vit: ViT, grids: Sequence[tuple[int, int]], length: int, seed: int = 1) -> Patches:
    """Images with patches on `grids`, (down, across), padded to `length`; a mask where there is padding."""
    width = vit.spec.patch**2 * vit.spec.channels
    pixels = images(len(grids), length, width, seed=seed).to(vit.device, vit.dtype)
    counts = torch.tensor([[down * across] for down, across in grids], device=vit.device)
    return vit.patches(pixels, grids, torch.arange(length, device=vit.device) < counts)


def no_gradient() -> Ops:
    """A backend like the kernels: right values, no gradient."""
    ops = torch_ops()

    def detached(op):
        return lambda *args, **kwargs: op(*args, **kwargs).detach()

    names = ("patch_embed", "layer_norm", "linear", "attention")
    return Ops("no gradient", *(detached(getattr(ops, n)) for n in names), differentiable=False)
