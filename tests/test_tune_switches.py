"""What `vit-fast tune` asks beside tiles, and that the answer reaches a model."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
import triton

from models import SPEC, images, randomize
from vit_fast import ViT, ops, tune_switches
from vit_fast.kernels import attention_tiles, linear_tiles, tables, tuning
from vit_fast.kernels.tuning import KNOWN

GPU = KNOWN["sm_90"]


@pytest.mark.parametrize("folded", [False, True])
def test_launchers_are_the_operators(folded):
    vit, pixels = randomize(ViT(SPEC)).half(), images(2, 3, 32, 32, dtype=torch.float16)
    with torch.inference_mode():
        y, _ = vit.encode(pixels, tune_switches.launchers(GPU, folded))
        z, _ = vit.encode(pixels, ops.triton_ops(folded))
    assert torch.equal(y, z)


@pytest.mark.parametrize("name", tune_switches.SWITCHES)
def test_a_switch_is_a_pass_without_and_a_pass_with(name, monkeypatch):
    monkeypatch.setattr(tune_switches, "_SPEC", replace(SPEC, image_size=(224, 224), patch=112))
    gpu = replace(GPU, arch=80)
    without, with_it = tune_switches.SWITCHES[name](torch.device("cpu"), gpu)
    for program in (without, with_it):
        tokens, _ = program(0)
        assert tokens.shape == (1, 5, SPEC.dim)


def test_dependent_launches_are_for_gpus_that_have_them(monkeypatch):
    seen = []
    monkeypatch.setattr(tune_switches, "_programs", lambda device, *tables: seen.append(tables))
    for arch, expected in ((80, [False, False]), (90, [False, True])):
        gpu = replace(GPU, arch=arch, pdl=True)
        tune_switches.pdl(torch.device("cpu"), gpu)
        assert [t.linear.keywords["gpu"].pdl for t in seen.pop()] == expected


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Writes a table of this GPU, as `tune` would, into a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def write(**contents):
        table = {
            "schema": tables.SCHEMA,
            "gpu": tuning.hardware(GPU),
            "versions": {"triton": triton.__version__},
            "date": "2026-11-21",
            "switches": {},
            "entries": [],
        }
        tables.write(tables.user_path(GPU.name), table | contents)
        tuning.forget()

    yield write
    tuning.forget()


def test_what_was_measured_reaches_the_model(measured, monkeypatch):
    monkeypatch.setattr(ops, "_runs_triton", lambda device: (True, "a GPU"))

    def chosen(dtype):
        return ops.choose_ops(torch.device("cuda"), dtype)[0]

    monkeypatch.setattr(tuning, "gpu_of", lambda device: GPU)
    measured()
    assert chosen(torch.bfloat16) is ops.triton_ops()
    measured(switches={"fold": {"on": True}, "pdl": {"on": True}})
    assert chosen(torch.bfloat16) is chosen(torch.float16) is ops.triton_ops(folded=True)
    assert chosen(torch.float32) is ops.triton_ops()


def test_a_measured_config_is_for_the_layout_it_was_measured_on(measured):
    from vit_fast.kernels.linear import config_for

    config = dict(block_m=64, block_n=64, block_k=64, num_warps=4, num_stages=4)
    shape = dict(M=50432, N=3072, K=768, dtype="bf16", epilogue="gelu")
    measured(entries=[{"op": "linear", "shape": shape, "config": config}])

    def found(descriptors, aligned):
        return config_for(50432, 3072, 768, torch.bfloat16, "gelu", descriptors, aligned, GPU)

    assert found(True, True) == linear_tiles.Config(**config)
    for layout in ((False, True), (False, False)):
        assert found(*layout) == linear_tiles.launch_config(50432, 3072, 768, 2, False, GPU, layout[1])  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [dict(block_m=100), dict(block_k=8), dict(num_warps=3), dict(num_stages=0), dict(slices=3),
     dict(splits=0), dict(blocks_per_sm=0)],
)  # fmt: skip
def test_a_linear_config_that_no_kernel_takes(change):
    with pytest.raises(ValueError, match="expected"):
        replace(linear_tiles.LIBRARY, **change)


@pytest.mark.parametrize(
    "change",
    [dict(block_m=100), dict(tail_m=8), dict(chunks=(16, 128, 0)), dict(chunks=(256, 0, 0)),
     dict(num_warps=2), dict(num_stages=9), dict(heads=3), dict(widest=8), dict(blocks_per_sm=0)],
)  # fmt: skip
def test_an_attention_config_that_no_kernel_takes(change):
    with pytest.raises(ValueError, match="expected"):
        replace(attention_tiles.launch_config(197, 197, 64, 2, GPU), **change)
