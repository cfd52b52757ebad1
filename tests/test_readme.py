"""The README's code runs as it stands, on a small model in place of the one on the hub."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Siglip2Config,
    Siglip2Model,
    Siglip2VisionConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import vit_fast
from models import TINY, hf_model, randomize
from vit_fast.families import FAMILIES, classes

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.+?)^```", README, re.M | re.S)
MODEL = "google/vit-base-patch16-224"
VLM, NAFLEX = "llava-hf/llava-1.5-7b-hf", "google/siglip2-base-patch16-naflex"


def block_with(*sources: str) -> list[str]:
    return [block for block in BLOCKS if any(source in block for source in sources)]


def test_there_are_four():
    counts = [len(block_with(source)) for source in (MODEL, VLM, NAFLEX)]
    assert (counts, len(BLOCKS)) == ([2, 1, 1], 4)


def test_the_table_has_every_model():
    """Each in the column that the families say."""
    rows = re.findall(r"^\|[^|]*\|([^|]*)\|([^|]*)\|$", README, re.M)
    whole, inside = (
        re.findall(r"`(\w+Model\w*|\w+For\w+|\w+Backbone|\w{14,})`", " ".join(c))
        for c in zip(*rows)
    )
    found = classes()
    forms = {cls for family in FAMILIES for cls in family.forms}
    assert sorted(n for n in (*whole, *inside) if n in found) == list(vit_fast.MODELS)
    assert all(found[name] in forms for name in whole if name in found)
    assert not any(found[name] in forms for name in inside if name in found)


@pytest.mark.parametrize(
    "cls, block", list(zip((ViTModel, ViTForImageClassification), block_with(MODEL)))
)
def test_runs(cls, block, tmp_path, monkeypatch, capsys):
    hf_model(cls, image_size=224, patch_size=16).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil().save_pretrained(tmp_path / "vit")
    Image.fromarray(np.zeros((300, 200, 3), np.uint8)).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block.replace(MODEL, "./vit"), names)
    assert names["tokens"].shape[1:] == (197, 64)
    assert torch.isfinite(names["tokens"]).all()
    out = capsys.readouterr().out
    assert ("ViTModel, fast (1 calls fast, 0" if cls is ViTModel else "None") in out


def test_the_vlm_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parent / "families")
    from vlms import VLMS

    VLMS["llava"].model().save_pretrained(tmp_path / "vlm")
    monkeypatch.chdir(tmp_path)
    exec(block_with(VLM)[0].replace(VLM, "./vlm"), {})
    said = "model.vision_tower: CLIPVisionModel, fast (1 calls fast, 0 through transformers)"
    assert said in capsys.readouterr().out
    assert said in block_with(VLM)[0]


def test_images_of_several_sizes_run(tmp_path, monkeypatch, capsys):
    sizes = {k: v for k, v in TINY.items() if k not in ("num_labels", "image_size")}
    vision = Siglip2VisionConfig(**{**sizes, "patch_size": 16}, num_patches=256)
    text = {**sizes, "vocab_size": 30, "max_position_embeddings": 8, "projection_size": 64}
    config = Siglip2Config(vision_config=vision.to_dict(), text_config=text)
    randomize(Siglip2Model(config)).save_pretrained(tmp_path / "naflex")
    Siglip2ImageProcessorPil().save_pretrained(tmp_path / "naflex")
    for name, shape in (("cat", (300, 200, 3)), ("wide", (100, 400, 3))):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    # that of transformers 5.17 needs torchvision
    code = block_with(NAFLEX)[0].replace("from transformers import AutoImageProcessor", "")
    names = {"AutoImageProcessor": Siglip2ImageProcessorPil}
    exec(code.replace(NAFLEX, "./naflex"), names)
    assert "torch.Size([2, 256, 64]) torch.Size([2, 64])" in capsys.readouterr().out
    assert names["shapes"].tolist() != [[16, 16]] * 2
    stock = Siglip2Model.from_pretrained(tmp_path / "naflex").eval().vision_model
    with torch.inference_mode():
        expected = stock(names["pixels"], names["mask"], names["shapes"])
    torch.testing.assert_close(names["found"].pooled, expected.pooler_output, rtol=0, atol=2e-5)
