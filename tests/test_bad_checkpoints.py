"""Bad checkpoints: one line that says what was given, what was expected, what to do."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from models import hf_model
from refusals import refused
from vit_fast import ViT


@pytest.fixture
def folder(tmp_path):
    hf_model(ViTModel).save_pretrained(tmp_path)
    return tmp_path


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


def test_a_hub_id_that_cannot_be_reached(tmp_path):
    """Not in the cache, and no network to ask: what a wrong name looks like offline."""
    with refused(
        OSError, "cannot read the config of 'nobody/no-such-model'", "hub id that exists", "network"
    ):
        ViT.from_pretrained("nobody/no-such-model", cache_dir=tmp_path, local_files_only=True)


def test_an_architecture_that_is_not_a_vit(tmp_path):
    tiny = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(BertConfig(vocab_size=10, **tiny)).save_pretrained(tmp_path)
    with refused(ValueError, "BertModel", "an encoder of vit"):
        ViT.from_pretrained(tmp_path)
    hf_model(ViTForMaskedImageModeling).save_pretrained(tmp_path)
    with refused(ValueError, "ViTForMaskedImageModeling", "ViTModel"):
        ViT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of the future"}))
    with refused(ValueError, "model_type 'of the future'", "vit-fast models"):
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


def test_half_a_pooler(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["pooler.dense.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with refused(ValueError, "1 missing: pooler.dense.bias"):
        ViT.from_pretrained(folder)
