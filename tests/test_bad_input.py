"""Bad input: one line that says what was given, what was expected, what to do."""

import json
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BatchFeature,
    BertConfig,
    BertModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from models import TINY, hf_model, images
from vit_fast import Normalization, ViT


@contextmanager
def refused(error: type[Exception], *parts: str) -> Iterator[None]:
    """`error` with a message of one line that has every part, in this order."""
    with pytest.raises(error, match=".*".join(re.escape(part) for part in parts)) as info:
        yield
    assert "\n" not in str(info.value)
    assert type(info.value) is error


@pytest.fixture(scope="module")
def vit() -> ViT:
    return ViT.from_hf(hf_model(ViTModel))


@pytest.fixture
def folder(tmp_path):
    hf_model(ViTModel).save_pretrained(tmp_path)
    return tmp_path


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
    with refused(ValueError, "no head", "ViTForImageClassification"):
        vit.features(images(1, 3, 32, 32), logits=True)
    with refused(ValueError, "nothing asked for"):
        vit.features(images(1, 3, 32, 32), tokens=False)


# live models


def test_another_class_of_model():
    with refused(ValueError, "ViTForMaskedImageModeling", "ViTModel or ViTForImageClassification"):
        ViT.from_hf(hf_model(ViTForMaskedImageModeling))
    with refused(ValueError, "Linear", "ViTModel"):
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


# checkpoints


def test_arguments(folder):
    with refused(ValueError, "dtype", "torch.bfloat16", "torch.int8"):
        ViT.from_pretrained(folder, dtype=torch.int8)
    with refused(ValueError, "dtype", "'bfloat16'"):
        ViT.from_pretrained(folder, dtype="bfloat16")
    with refused(TypeError, "unknown argument torch_dtype", "revision"):
        ViT.from_pretrained(folder, torch_dtype=torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(folder):
    with refused(ValueError, "device is 'cuda'", "no CUDA GPU", "device='cpu'"):
        ViT.from_pretrained(folder, device="cuda")


def test_nothing_there(tmp_path):
    with refused(OSError, "no config.json", "save_pretrained"):
        ViT.from_pretrained(tmp_path)
    with refused(OSError, "not a folder", "hub id"):
        ViT.from_pretrained(tmp_path / "missing")
    with refused(OSError, "'./missing' is not a folder"):
        ViT.from_pretrained("./missing")
    (tmp_path / "config.json").write_text("{")
    with refused(OSError, "cannot read the config", "JSON"):
        ViT.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}"])
def test_a_config_without_a_model(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with refused(ValueError, "config.json", "names no model", "model_type"):
        ViT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"hidden_act": "bogus"}, ("cannot make a ViTModel", "bogus", "config.json")),
        ({"num_attention_heads": 0}, ("cannot make a ViTModel", "config.json")),
        ({"hidden_size": "64"}, ("cannot make a ViTModel", "hidden_size", "config.json")),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, ("quantized", "dequantized")),
    ],
    ids=str,
)
def test_a_nonsensical_config(folder, change, parts):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | change))
    with refused(ValueError, *parts):
        ViT.from_pretrained(folder)


@pytest.mark.parametrize(
    "values", ['{"image_mean": "x", "image_std": [1]}', "{", '{"image_mean": 0, "image_std": 0}']
)
def test_nonsensical_processor_values(folder, values):
    (folder / "preprocessor_config.json").write_text(values)
    with refused(ValueError, "preprocessor_config.json", "image_mean and image_std"):
        ViT.from_pretrained(folder)


def test_adapters_around_the_model():
    class PeftModel(torch.nn.Module):
        def merge_and_unload(self):
            return self

    with refused(ValueError, "PeftModel holds adapters", "merge_and_unload()"):
        ViT.from_hf(PeftModel())


def test_a_batch_as_a_processor_returns_it(vit):
    with refused(TypeError, "got BatchFeature", "['pixel_values']"):
        vit(BatchFeature({"pixel_values": images(*F32)}))


def test_a_hub_id_that_cannot_be_reached(tmp_path):
    """Not in the cache, and no network to ask: what a wrong name looks like offline."""
    with refused(
        OSError, "cannot read the config of 'nobody/no-such-model'", "hub id that exists", "network"
    ):
        ViT.from_pretrained("nobody/no-such-model", cache_dir=tmp_path, local_files_only=True)


def test_an_architecture_that_is_not_a_vit(tmp_path):
    tiny = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(BertConfig(vocab_size=10, **tiny)).save_pretrained(tmp_path)
    with refused(ValueError, "BertModel", "ViTModel or ViTForImageClassification"):
        ViT.from_pretrained(tmp_path)
    hf_model(ViTForMaskedImageModeling).save_pretrained(tmp_path)
    with refused(ValueError, "ViTForMaskedImageModeling", "ViTModel"):
        ViT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of the future"}))
    with refused(ValueError, "model_type 'of the future'", "ViTModel"):
        ViT.from_pretrained(tmp_path)


def test_weights_that_are_no_file_of_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text("some text, no weights")
    with refused(ValueError, "weights"):
        ViT.from_pretrained(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with refused(OSError, "cannot read the weights", "model.safetensors"):
        ViT.from_pretrained(folder)


def test_broken_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with refused(OSError, "cannot read the weights", "safetensors"):
        ViT.from_pretrained(folder)


class Payload:
    """What torch.load(weights_only=True) refuses to make."""

    made = False

    def __reduce__(self):
        return (setattr, (Payload, "made", True))


def test_a_pickle_that_runs_code(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"layernorm.weight": Payload()}, folder / "pytorch_model.bin")
    with refused(ValueError, "pickle", "weights_only", "safetensors"):
        ViT.from_pretrained(folder)
    assert not Payload.made
    pickle.loads(pickle.dumps(Payload()))
    assert Payload.made


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda w: w.pop("layernorm.bias"), ("1 missing: layernorm.bias",)),
        (
            lambda w: w.pop("cls_token", w.pop("embeddings.cls_token")),
            ("1 missing: embeddings.cls_token",),
        ),
        (lambda w: [w.pop(k) for k in list(w) if "layer" in k], ("missing", ", ...")),
        (lambda w: w.update(extra=torch.zeros(3)), ("1 unexpected: extra",)),
        (
            lambda w: w.update({"layernorm.bias": torch.zeros(7)}),
            ("1 of another shape", "(7,) for (64,)"),
        ),
    ],
    ids=["missing", "class token", "all layers", "unexpected", "shape"],
)
def test_weights_that_do_not_fit(folder, change, parts):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with refused(ValueError, "not those of its ViTModel", *parts, "config.json"):
        ViT.from_pretrained(folder)


def test_a_classifier_without_its_head(tmp_path):
    """transformers would start it at random."""
    hf_model(ViTForImageClassification).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["classifier.weight"], weights["classifier.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with refused(
        ValueError, "ViTForImageClassification", "2 missing: classifier.bias, classifier.weight"
    ):
        ViT.from_pretrained(tmp_path)


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
        (biased, ("blocks.0.attn.qkv", "all have a bias or none")),
    ):
        with refused(ValueError, *parts):
            ViT.from_hf(model)


def test_hooks_of_transformers_itself():
    """It records hidden states by hooks, which it leaves where they are."""
    model = hf_model(ViTModel)
    model(images(*F32), output_hidden_states=True)
    ViT.from_hf(model)


def test_half_a_pooler(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["pooler.dense.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with refused(ValueError, "1 missing: pooler.dense.bias"):
        ViT.from_pretrained(folder)
