"""The examples, and the benchmark behind the numbers of one, on small models."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import ViTModel

from models import hf_model

ROOT = Path(__file__).parents[1]


def run(*command: str) -> subprocess.CompletedProcess:
    # as a user would: without the interpreter of the tests
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_drop_in(dtype, tmp_path):
    hf_model(ViTModel).save_pretrained(tmp_path)
    small = ("--model", str(tmp_path), "--rounds", "1", "--batch", "2")
    done = run("examples/drop_in.py", *small, "--dtype", dtype)
    assert done.returncode == 0, done.stderr
    for line in ("3. vit_fast.ViT", "ViTModel, fast (", "not accelerated", "same numbers"):
        assert line in done.stdout
    assert "why not: attention_mask is given" in done.stdout


def test_drop_in_without_a_model(tmp_path):
    done = run("examples/drop_in.py", "--model", str(tmp_path / "missing"))
    assert done.returncode == 2
    assert done.stderr.startswith("drop_in: ")
    assert "Traceback" not in done.stderr


def test_vlm_tower():
    done = run("examples/vlm_tower.py", "--width", "576", "--layers", "1", "--rounds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    for tower in ("SiglipVisionModel", "CLIPVisionModel"):
        assert f"model.vision_tower: {tower}, fast (" in done.stdout
    assert done.stdout.count("tokens out of generate: the same") == 2


def test_vlm_tower_of_a_width_that_heads_do_not_divide():
    done = run("examples/vlm_tower.py", "--width", "600")
    assert done.returncode == 2
    assert "must be a multiple of 576, got 600" in done.stderr


@pytest.fixture
def benchmark_drop_in(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import drop_in

    return drop_in


def test_host_time(benchmark_drop_in):
    with torch.inference_mode():
        rows = benchmark_drop_in.host_time(rounds=3)
    assert [(row["model"], row["layers"]) for row in rows] == [
        (name, layers) for layers in (2, 12) for name in ("ViTModel", "ViTForImageClassification")
    ]
    for row in rows:
        assert 0 < row["of_which_the_watch_us"] < row["the_engine_us"]


def test_least_time(benchmark_drop_in):
    """35.1 GFLOP at the best rate of any product of the cell."""
    rows = [
        {"dtype": "float32", "batch": 8, "product": "qkv", "a": 100.0, "b": 200.0},
        {"dtype": "float32", "batch": 8, "product": "proj", "a": 50.0, "b": 150.0},
        {"dtype": "float32", "batch": 1, "product": "qkv", "a": 351.0, "b": 1.0},
    ]
    gflop = benchmark_drop_in.SPEC.flops() / 1e9
    assert gflop == pytest.approx(35.1, abs=0.1)
    least = benchmark_drop_in.least_ms(rows, 35.1)
    assert least == {"float32 batch 8": 1404.0, "float32 batch 1": 100.0}
