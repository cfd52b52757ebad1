"""Each trouble that doctor knows, told from facts that are made up; and the facts of this machine."""

import os
import re
import types
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vit_fast import doctor, onednn_attention
from vit_fast.doctor import Card, Facts, diagnose
from vit_fast.kernels import tables

VERSIONS = {
    "vit-fast": "0.1.0",
    "python": "3.12.1",
    "torch": "2.11.0+cu130",
    "triton": "3.6.0",
    "transformers": "5.17.0",
}
CARD = Card("NVIDIA H200", "9.0", 150.1, 149.0, True, "NVIDIA H200, 9.0", "the launch rule")
GOOD = Facts(
    versions=VERSIONS,
    cuda_built="13.0",
    cards=(CARD,),
    smi_cards=("NVIDIA H200",),
    driver="580.65",
    cpu_why_not={"float32": "", "bfloat16": "this CPU runs AVX2"},
    cache="/home/me/.cache/vit-fast",
)
LAPTOP = replace(GOOD, cuda_built="", cards=(), smi_cards=(), driver="")


@pytest.mark.parametrize("facts", [GOOD, LAPTOP], ids=["a GPU", "a CPU alone"])
def test_a_machine_without_trouble(facts):
    found = diagnose(facts)
    assert found.troubles == ()
    assert str(found).endswith("trouble\n    none found")


def test_what_is_printed():
    said = str(diagnose(GOOD))
    for words in (
        *VERSIONS.values(),
        "CUDA 13.0",
        "driver        580.65",
        "cuda:0        NVIDIA H200, compute capability 9.0, 149.0 of 150.1 GB free",
        "kernels   run",
        "configs   the launch rule",
        "cpu, float32  oneDNN linear layers, oneDNN attention\n",
        "cpu, bfloat16 PyTorch's own operations: this CPU runs AVX2",
        "/home/me/.cache/vit-fast",
    ):
        assert words in said
    half = replace(
        GOOD, cpu_why_not={"bfloat16": ""}, cpu_attention_why_not={"bfloat16": "it is off"}
    )
    words = "cpu, bfloat16 oneDNN linear layers, PyTorch's attention: it is off"
    assert words in str(diagnose(half))
    assert "torch is for  a CPU" in str(diagnose(LAPTOP))
    assert "driver        none of NVIDIA found" in str(diagnose(LAPTOP))
    no_gpu = "gpu           none that PyTorch sees: models run on the CPU"
    assert no_gpu in str(diagnose(LAPTOP)) and no_gpu not in said


def with_version(name, version, facts=GOOD):
    return replace(facts, versions={**VERSIONS, name: version})


TOO_OLD = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020)."
BLIND = replace(GOOD, cards=())
OLD_CARD = replace(CARD, runs_kernels=False, why="need compute capability 8.0")
TROUBLES = {
    "no triton": (
        with_version("triton", ""),
        "triton is not installed, so no kernel can run: pip install triton",
    ),
    "broken triton": (
        with_version("triton", "broken: libtriton.so"),
        r"triton cannot be imported \(broken: libtriton.so\)",
    ),
    "old triton": (
        with_version("triton", "3.5.1"),
        "triton is 3.5.1, vit-fast is made for >= 3.6: install",
    ),
    "old torch": (
        with_version("torch", "2.7.1+cu126"),
        r"torch is 2.7.1\+cu126, vit-fast is made for >= 2.8",
    ),
    "old transformers": (with_version("transformers", "4.57.1"), "is made for >= 5.17, < 6"),
    "new transformers": (with_version("transformers", "6.0.0"), "transformers is 6.0.0, .* < 6"),
    "no transformers": (
        with_version("transformers", ""),
        r"transformers cannot be imported \(not installed\)",
    ),
    "torch for a CPU": (
        replace(BLIND, cuda_built=""),
        "nvidia-smi shows NVIDIA H200 with driver 580.65, but torch .* is built for a CPU: install a CUDA",
    ),
    "old driver": (
        replace(BLIND, cuda_words=TOO_OLD),
        "too old for torch's CUDA 13.0: update the driver",
    ),
    "hidden": (replace(BLIND, visible=""), "PyTorch sees no GPU: CUDA_VISIBLE_DEVICES is ''"),
    "unseen": (
        replace(BLIND, cuda_words="CUDA unknown error"),
        "PyTorch sees no GPU: CUDA unknown error",
    ),
    "one of two": (
        replace(GOOD, smi_cards=("A", "B")),
        "shows A, B with driver 580.65, PyTorch sees 1 GPU$",
    ),
    "no driver": (
        replace(LAPTOP, smi_words="couldn't communicate"),
        r"finds no driver \(couldn't communicate\)",
    ),
    "torch warns": (
        replace(GOOD, cuda_words="sm_121 is not compatible"),
        "PyTorch says of CUDA: sm_121",
    ),
    "old GPU": (
        replace(GOOD, cards=(OLD_CARD,)),
        "cuda:0 runs PyTorch's operations, not the kernels: need compute",
    ),
    "second GPU": (replace(GOOD, cards=(CARD, OLD_CARD)), "cuda:1 .*capability 8.0"),
    "broken table": (
        replace(GOOD, cards=(replace(CARD, refused=("the tuning table x is not used",)),)),
        "the tuning table x is not used",
    ),
    "cache": (
        replace(GOOD, cache_trouble="/home/me cannot be written to"),
        "/home/me cannot be written to: .*XDG_CACHE_HOME",
    ),
}


@pytest.mark.parametrize("facts, words", TROUBLES.values(), ids=TROUBLES)
def test_each_trouble_is_told_once(facts, words):
    found = diagnose(facts)
    assert len(found.troubles) == 1, found.troubles
    assert re.search(words, found.troubles[0])
    assert found.troubles[0] in str(found)


def test_triton_is_not_missed_where_it_does_not_exist():
    assert diagnose(with_version("triton", "", replace(LAPTOP, system="Darwin"))).troubles == ()


def test_the_versions_are_those_that_setup_asks_for():
    setup = (Path(__file__).parents[1] / "setup.py").read_text()
    for name, (least, below) in doctor.WANTED.items():
        assert f"{name}>={least}{',' * bool(below)}{'<' * bool(below)}{below}" in setup


def test_the_facts_of_this_machine():
    facts = doctor.look()
    assert facts.versions["torch"] == torch.__version__
    assert len(facts.cards) == torch.cuda.device_count()
    assert set(facts.cpu_why_not) == {"float32", "bfloat16"} == set(facts.cpu_attention_why_not)
    for dtype, why in facts.cpu_attention_why_not.items():
        assert why == onednn_attention.why_not(getattr(torch, dtype))
    assert str(diagnose(facts)).count("cuda:") >= len(facts.cards)


def test_versions_of_what_does_not_import(monkeypatch):
    def load(name):
        if name == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
        if name == "transformers":
            raise ImportError("a symbol\nis missing")
        return types.SimpleNamespace(__version__="2.11.0")

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    found = doctor.versions()
    assert (found["torch"], found["triton"]) == ("2.11.0", "")
    assert found["transformers"] == "broken: a symbol is missing"


@pytest.mark.parametrize(
    "script, found",
    [
        (
            "echo 'NVIDIA H200, 580'; echo 'NVIDIA L4, 580'",
            (("NVIDIA H200", "NVIDIA L4"), "580", ""),
        ),
        ("echo 'it could not talk to it' >&2; exit 9", ((), "", "it could not talk to it")),
        ("true", ((), "", "it lists no GPU")),
    ],
)
def test_nvidia_smi(tmp_path, script, found):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    assert doctor.nvidia_smi(str(program)) == found


def test_no_nvidia_smi_is_no_trouble(tmp_path):
    assert doctor.nvidia_smi(str(tmp_path / "none")) == ((), "", "")
    (tmp_path / "file").write_text("")
    assert "Permission denied" in doctor.nvidia_smi(str(tmp_path / "file"))[2]


@pytest.fixture
def gpus(monkeypatch):
    """Two of them, as far as torch.cuda says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = types.SimpleNamespace(name="NVIDIA L4", major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**10, 2 * 10**10))
    chosen = types.SimpleNamespace(name="torch")
    monkeypatch.setattr(doctor, "choose_ops", lambda device, dtype: (chosen, "no compiler"))
    return chosen


def test_gpus_are_asked_one_by_one(gpus):
    cards, words = doctor._cards()
    assert cards == (Card("NVIDIA L4", "8.9", 20.0, 10.0, False, "no compiler"),) * 2
    assert words == ""


def test_a_gpu_where_the_kernels_run(gpus, monkeypatch):
    gpus.name = "triton"
    monkeypatch.setattr(doctor, "tuning_table", lambda device: (f"of {device}", ("x",)))
    (card, _), _ = doctor._cards()
    assert (card.runs_kernels, card.table, card.refused) == (True, "of cuda:0", ("x",))


def test_what_torch_says_of_its_gpus_is_a_fact(gpus, monkeypatch):
    def warns():
        warnings.warn(TOO_OLD, stacklevel=1)
        warnings.warn("old spelling", DeprecationWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", warns)
    assert doctor._cards() == ((), TOO_OLD)

    def fails(device):
        raise RuntimeError("CUDA error: out of memory\nCompile with")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", fails)
    assert doctor._cards() == ((), "CUDA error: out of memory Compile with")


def test_the_tuning_table(monkeypatch, tmp_path):
    tuning = pytest.importorskip("vit_fast.kernels.tuning")
    pytest.importorskip("triton")
    from test_tuning import GPU, entry, table

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "gpu_of", lambda device: GPU)
    said, refused = doctor.tuning_table(torch.device("cuda", 0))
    assert "nothing was measured, `vit-fast tune` does" in said
    assert refused == ()
    path = tables.user_path(GPU.name)
    tables.write(path, table(entry()))
    said, refused = doctor.tuning_table(torch.device("cuda", 0))
    assert said.startswith("measured on this machine: 1 shapes, 2026-11-21, triton ")
    assert said.endswith(str(path))
    path.write_text("{")
    said, refused = doctor.tuning_table(torch.device("cuda", 0))
    assert said.startswith("the launch rule")
    assert "it is not JSON" in refused[0]


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a/b"))
    assert doctor._cache() == (str(tmp_path / "a/b/vit-fast"), "")
    (tmp_path / "a").write_text("")
    assert doctor._cache()[1] == f"{tmp_path}/a is a file, not a folder"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert doctor._cache()[1] == f"{tmp_path} cannot be written to"
    monkeypatch.setattr(tables, "cache_folder", lambda: None)
    assert doctor._cache() == ("", "this user has no home folder")
