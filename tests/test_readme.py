"""The README's code runs as it stands, on a small model in place of the one on the hub."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTForImageClassification, ViTModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from models import hf_model

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.+?)^```", README, re.M | re.S)
MODEL = "google/vit-base-patch16-224"


def test_there_are_two():
    assert [MODEL in block for block in BLOCKS] == [True, True]


@pytest.mark.parametrize("cls, block", zip((ViTModel, ViTForImageClassification), BLOCKS))
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
