"""Checkpoints: ViT.from_pretrained gives what transformers gives, whoever wrote the folder, and when."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2ForImageClassification,
    Dinov2Model,
    PreTrainedModel,
    ViTForImageClassification,
    ViTModel,
)

from models import NORM, TINY, hf_model, images, randomize
from vit_fast import Normalization, ViT

FIELDS = {
    "image_processor_type": "ViTImageProcessor",
    "do_normalize": True,
    "image_mean": list(NORM.mean),
    "image_std": list(NORM.std),
    "do_rescale": True,
    "rescale_factor": 1 / 255,
}


def save(model: PreTrainedModel, folder: Path, processor: dict | None = None) -> Path:
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def same(vit: ViT, hf: PreTrainedModel) -> None:
    pixels = images(2, 3, 32, 32, dtype=vit.dtype)
    with torch.inference_mode():
        theirs = hf(pixels, output_hidden_states=True)
        ours = vit.features(pixels, hidden_states=True, pooled=True, logits=vit.head is not None)
    for y, expected in zip(ours.hidden_states, theirs.hidden_states):
        torch.testing.assert_close(y, expected, rtol=0, atol=2e-5)
    if vit.head is not None:
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=2e-5)
    elif vit.pooler is not None:
        torch.testing.assert_close(ours.pooled, theirs.pooler_output, rtol=0, atol=2e-5)
    else:
        assert torch.equal(ours.pooled, ours.tokens[:, 0])


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (ViTModel, {}),
        (ViTModel, {"add_pooling_layer": False}),
        (ViTForImageClassification, {}),
    ],
)
def test_a_saved_model(tmp_path, cls, config):
    hf = hf_model(cls, **config)
    vit = ViT.from_pretrained(save(hf, tmp_path))
    assert (vit.pooler is None) == (getattr(hf, "pooler", None) is None)
    assert (vit.head is None) == (cls is ViTModel)
    assert vit.normalization is None
    assert not vit.training
    assert all(p.requires_grad for p in vit.parameters())
    same(vit, hf)
    same(ViT.from_pretrained(str(tmp_path)), hf)


def test_dtype_and_device(tmp_path):
    save(hf_model(ViTModel, torch.bfloat16), tmp_path)
    assert ViT.from_pretrained(tmp_path).dtype == torch.bfloat16
    vit = ViT.from_pretrained(tmp_path, dtype=torch.float16, device="cpu")
    assert {p.dtype for p in vit.parameters()} == {torch.float16}
    assert vit.device == torch.device("cpu")


def without_architectures(folder: Path) -> Path:
    config = folder / "config.json"
    fields = json.loads(config.read_text())
    del fields["architectures"]
    config.write_text(json.dumps(fields))
    return folder


def test_a_config_without_architectures_is_an_encoder(tmp_path):
    hf = hf_model(ViTModel)
    same(ViT.from_pretrained(without_architectures(save(hf, tmp_path))), hf)


def test_a_config_without_architectures_of_an_encoder_and_another(tmp_path):
    """As AutoModel takes it: the text's half is not one of weights too many."""
    hf = randomize(CLIPModel(CLIPConfig(vision_config=TINY, text_config=TINY))).eval()
    vit = ViT.from_pretrained(without_architectures(save(hf, tmp_path)))
    with torch.inference_mode():
        pixels = images(2, 3, 32, 32)
        expected = hf.get_image_features(pixels).pooler_output
        torch.testing.assert_close(
            vit.features(pixels, logits=True).logits, expected, rtol=0, atol=2e-5
        )


def test_a_mask_token_of_pretraining_is_left_out(tmp_path):
    hf = hf_model(ViTModel)
    file = save(hf, tmp_path) / "model.safetensors"
    weights = load_file(file)
    weights["embeddings.mask_token"] = torch.zeros(1, 1, 64)
    save_file(weights, file, {"format": "pt"})
    same(ViT.from_pretrained(tmp_path), hf)


# this transformers' names -> those that 4.57 wrote
OLD_NAMES = (
    (r"\blayers\.(\d+)\.", r"encoder.layer.\1."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)


@pytest.mark.parametrize("cls", [Dinov2Model, Dinov2ForImageClassification])
def test_a_mask_token_that_is_missing_is_not_missed(tmp_path, cls):
    hf = hf_model(cls)
    file = save(hf, tmp_path) / "model.safetensors"
    weights = load_file(file)
    kept = {name: t for name, t in weights.items() if not name.endswith("mask_token")}
    assert len(kept) == len(weights) - 1
    save_file(kept, file, {"format": "pt"})
    same(ViT.from_pretrained(tmp_path), hf)


@pytest.mark.parametrize("cls", [ViTModel, ViTForImageClassification])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_names_of_old_transformers(tmp_path, cls, file):
    hf = hf_model(cls)
    save(hf, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights = {}
    for name, tensor in hf.state_dict().items():
        for new, old in OLD_NAMES:
            name = re.sub(new, old, name)
        weights[name] = tensor
    prefix = "" if cls is ViTModel else "vit."
    assert f"{prefix}encoder.layer.1.attention.attention.query.weight" in weights
    assert f"{prefix}encoder.layer.0.output.dense.bias" in weights
    if file == "pytorch_model.bin":
        torch.save(weights, tmp_path / file)
    else:
        save_file(weights, tmp_path / file, {"format": "pt"})
    same(ViT.from_pretrained(tmp_path), hf)


def test_from_the_hub_cache(tmp_path):
    """A hub id that was downloaded before, without a network and without processor values."""
    hf = hf_model(ViTModel)
    commit = "0" * 40
    repo = tmp_path / "models--someone--some-vit"
    save(hf, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    offline = dict(cache_dir=tmp_path, local_files_only=True)
    same(ViT.from_pretrained("someone/some-vit", **offline), hf)
    same(ViT.from_pretrained("someone/some-vit", revision="main", **offline), hf)
    processor = repo / "snapshots" / commit / "preprocessor_config.json"
    processor.write_text(json.dumps(FIELDS))
    assert ViT.from_pretrained("someone/some-vit", **offline).normalization == NORM


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (FIELDS, NORM),
        ({**FIELDS, "image_processor_type": "ViTImageProcessorFast"}, NORM),
        ({k: FIELDS[k] for k in ("do_normalize", "image_mean", "image_std")}, NORM),
        ({**FIELDS, "rescale_factor": 1 / 127.5}, Normalization(1 / 127.5, NORM.mean, NORM.std)),
        ({**FIELDS, "do_rescale": False}, Normalization(1.0, NORM.mean, NORM.std)),
        ({**FIELDS, "do_normalize": False}, Normalization(1 / 255, (0.0,) * 3, (1.0,) * 3)),
        (
            {**FIELDS, "image_mean": 0.5, "image_std": [0.25]},
            Normalization(1 / 255, (0.5,) * 3, (0.25,) * 3),
        ),
        ({"image_processor_type": "ViTImageProcessor"}, None),
    ],
    ids=["full", "fast", "of old", "rescale", "no rescale", "no normalize", "scalars", "no values"],
)
def test_processor_values(tmp_path, fields, expected):
    vit = ViT.from_pretrained(save(hf_model(ViTModel), tmp_path, fields))
    assert vit.normalization == expected


def test_processor_values_as_transformers_saves_them(tmp_path):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    save(hf_model(ViTModel), tmp_path)
    processor = ViTImageProcessorPil(image_mean=NORM.mean, image_std=NORM.std)
    processor.save_pretrained(tmp_path)
    assert ViT.from_pretrained(tmp_path).normalization == NORM


def test_sharded_weights(tmp_path):
    hf = hf_model(ViTModel)
    hf.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    same(ViT.from_pretrained(tmp_path), hf)
