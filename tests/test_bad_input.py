"""Bad pixels and live models: one line that says what was given, what was expected, what to do."""

import pytest
import torch
from torch import nn
from transformers import (
    BatchFeature,
    SmolVLMConfig,
    SmolVLMModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from models import TINY, hf_model, images
from refusals import refused
from vit_fast import Normalization, ViT


@pytest.fixture(scope="module")
def vit() -> ViT:
    return ViT.from_hf(hf_model(ViTModel))


# pixels

F32 = (1, 3, 32, 32)
# what is wrong: the pixels, the parts of the message
PIXELS = {
    "one image": (images(3, 32, 32), ("4 axes", "(3, 32, 32)", "pixels[None]")),
    "one channel": (images(1, 1, 32, 32), ("3 channels", "(1, 1, 32, 32)")),
    "channels last": (
        images(1, 32, 32, 3),
        ("3 channels", "(1, 32, 32, 3)", "permute(0, 3, 1, 2)"),
    ),
    "height": (images(1, 3, 30, 32), ("multiples of the patch, 8", "30 x 32", "resize")),
    "width": (images(1, 3, 32, 33), ("multiples of the patch, 8", "32 x 33")),
    "no pixels": (images(1, 3, 0, 32), ("positive multiples", "0 x 32")),
    "int64": (images(*F32).long(), ("torch.int64", "torch.float32", "torch.uint8")),
    "int8": (images(*F32).to(torch.int8), ("torch.int8", "torch.uint8")),
    "bool": (images(*F32) > 0, ("torch.bool", "torch.uint8")),
    "float64": (images(*F32).double(), ("torch.float64", "pixels.to(torch.float32)")),
    "bytes": (images(*F32, dtype=torch.uint8), ("uint8", "mean and std", "vit_fast.Normalization")),
    "device": (images(*F32).to("meta"), ("meta", "the model on cpu", "pixels.to('cpu')")),
}


@pytest.mark.parametrize("name", PIXELS)
def test_pixels(vit, name):
    pixels, parts = PIXELS[name]
    for call in (vit, vit.features):
        with refused(ValueError, *parts):
            call(pixels)


def test_pixels_that_are_no_tensor(vit):
    with refused(TypeError, "torch.Tensor", "ndarray", "image processor"):
        vit(images(*F32).numpy())


def test_normalization_of_other_channels():
    vit = ViT.from_hf(hf_model(ViTModel), Normalization(1 / 255, (0.5,), (0.5,)))
    with refused(ValueError, "for 1 channels", "the model has 3"):
        vit(images(1, 3, 32, 32, dtype=torch.uint8))


def test_another_size_of_a_model_that_is_not_square():
    vit = ViT.from_hf(hf_model(ViTModel, image_size=(32, 48)))
    assert vit(images(1, 3, 32, 48)).shape == (1, 25, 64)
    with refused(ValueError, "4 x 6 patches", "4 x 4", "square grids only"):
        vit(images(1, 3, 32, 32))


def test_asked_for_what_is_not_there(vit):
    with refused(ValueError, "no head", "image classification"):
        vit.features(images(1, 3, 32, 32), logits=True)
    with refused(ValueError, "nothing asked for"):
        vit.features(images(1, 3, 32, 32), tokens=False)


# live models


def test_another_class_of_model():
    with refused(ValueError, "ViTForMaskedImageModeling", "an encoder of vit"):
        ViT.from_hf(hf_model(ViTForMaskedImageModeling))
    with refused(ValueError, "SmolVLMModel", "pass its vision_model"):
        vision = {**TINY, "hidden_act": "gelu_pytorch_tanh"}
        text = dict(model_type="llama", hidden_size=32, num_hidden_layers=1, vocab_size=9)
        text |= dict(num_attention_heads=2, intermediate_size=48)
        ViT.from_hf(SmolVLMModel(SmolVLMConfig(vision_config=vision, text_config=text)))
    with refused(ValueError, "Linear", "vit-fast models"):
        ViT.from_hf(nn.Linear(2, 2))

    class MyViT(ViTModel):
        pass

    with refused(ValueError, "MyViT", "exactly"):
        ViT.from_hf(hf_model(MyViT))


def test_a_module_that_is_not_stock():
    """An adapter around a Linear has a `.weight` too, and it is not what the model computes with."""

    class Adapter(nn.Linear):
        pass

    hf = hf_model(ViTModel)
    hf.layers[1].attention.k_proj = Adapter(64, 64)
    with refused(ValueError, "ViTAttention.k_proj", "Adapter", "exactly Linear", "merge"):
        ViT.from_hf(hf)
    hf = hf_model(ViTModel)
    hf.layers[0].mlp.activation_fn = nn.ReLU()
    with refused(ValueError, "ViTMLP.activation_fn", "ReLU", "GELUActivation"):
        ViT.from_hf(hf)
    hf = hf_model(ViTForImageClassification)
    hf.classifier = nn.Sequential(nn.Linear(64, 5))
    with refused(ValueError, "classifier", "Sequential", "exactly Linear"):
        ViT.from_hf(hf)
    hf = hf_model(ViTModel)
    hf.layers[1].layernorm_after.eps = 1e-3
    with refused(ValueError, "different eps", "0.001"):
        ViT.from_hf(hf)


def test_an_unknown_layout():
    hf = hf_model(ViTModel)
    hf.encoder = hf.layers
    del hf.layers
    with refused(
        ValueError, "ViTModel of transformers", "no 'layers'", "transformers >= 5.17, < 6"
    ):
        ViT.from_hf(hf)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"hidden_act": "mish"}, ("hidden_act 'mish'", "gelu, gelu_tanh")),
        ({"pooler_act": "mish"}, ("pooler_act 'mish'", "tanh")),
        ({"patch_size": (8, 16)}, ("(8, 16)", "square")),
    ],
)
def test_a_config_that_is_not_supported(config, parts):
    with refused(ValueError, *parts):
        ViT.from_hf(hf_model(ViTModel, **config))


def test_weights_that_are_nowhere_or_everywhere():
    with torch.device("meta"):
        hf = ViTModel(ViTConfig(**TINY))
    with refused(ValueError, "meta", "from_pretrained"):
        ViT.from_hf(hf)
    hf = hf_model(ViTModel)
    hf.layers[1].mlp.fc1.to("meta")
    with refused(ValueError, "meta"):
        ViT.from_hf(hf)
    hf = hf_model(ViTModel)
    hf.layernorm.double()
    with refused(ValueError, "torch.float32, torch.float64", "model.to(torch.float32)"):
        ViT.from_hf(hf)


def test_adapters_around_the_model():
    class PeftModel(torch.nn.Module):
        def merge_and_unload(self):
            return self

    with refused(ValueError, "PeftModel holds adapters", "merge_and_unload()"):
        ViT.from_hf(PeftModel())


def test_a_batch_as_a_processor_returns_it(vit):
    with refused(TypeError, "got BatchFeature", "['pixel_values']"):
        vit(BatchFeature({"pixel_values": images(*F32)}))


def test_behaviour_that_only_the_module_has():
    """from_hf reads weights: what else a module does would be left out."""
    hooked, own, scaled, biased = (hf_model(ViTModel, qkv_bias=i < 3) for i in range(4))
    hooked.layers[0].register_forward_hook(lambda *args: None)
    own.layers[1].mlp.forward = lambda x: x
    scaled.layers[0].attention.scaling = 1.0
    biased.layers[0].attention.v_proj.bias = torch.nn.Parameter(torch.ones(64))
    for model, parts in (
        (hooked, ("layers.0 has forward hooks",)),
        (own, ("mlp has a forward of its own",)),
        (scaled, ("layers.0.attention has scaling 1.0",)),
        (biased, ("layers differ in qkv_bias",)),
    ):
        with refused(ValueError, *parts):
            ViT.from_hf(model)


def test_hooks_of_transformers_itself():
    """It records hidden states by hooks, which it leaves where they are."""
    model = hf_model(ViTModel)
    model(images(*F32), output_hidden_states=True)
    ViT.from_hf(model)
