"""What ships is compiled for GPUs that are not here: at most 130 kernels by default, all if slow."""

import dataclasses
import os

import pytest

static_check = pytest.importorskip("vit_fast.kernels.static_check")


def faults(arch, **choice):
    found = list(static_check.run(arch, **choice))
    return found, [(c.launch, c.config, c.faults()) for c in found if c.faults()]


@pytest.mark.parametrize(
    "arch, only, most",
    [
        ("sm_80", "ViT-L/16-224 batch 64", 24),
        ("sm_86", "ViT-B/16-224 batch 1 ", 24),
        ("sm_90", "batch 64", 60),
        ("sm_100", "so400m/14-384 batch 64", 24),
    ],
)
def test_no_spills_within_memory_on_the_matrix_unit(arch, only, most):
    found, bad = faults(arch, only=only)
    assert 7 <= len(found) <= most
    assert {c.arch for c in found} == {arch}
    assert not bad
    names = {c.kernel for c in found}
    assert "_layer_norm_kernel" in names and "_patch_embed_kernel" in names
    assert any("linear" in n for n in names) and names & {"flash_kernel", "one_pass_kernel"}
    if arch == "sm_90":
        assert {c.matrix for c in found} == {"wgmma", "mma.sync", "none"}
        assert all(c.bulk_copies for c in found if c.kernel == "linear_descriptor_kernel")
    if arch == "sm_100":
        assert "tcgen05.mma" in {c.matrix for c in found}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90", "sm_100"])
def test_everything(arch):
    found, bad = faults(arch, everything=True)
    assert len(found) > 100
    assert not bad


@pytest.mark.parametrize("launch", ["qkv", "attention", "patch_embed float32"])
def test_fp32_stays_off_the_matrix_unit(launch):
    """Which would round its operands to TF32: the interpreter does not, and cannot tell."""
    found, bad = faults("sm_90", everything=True, only=f"B/32-224 batch 1 {launch} in float32")
    assert [c.dtype for c in found] == ["fp32"]
    assert not bad


GOOD = static_check.Compiled(
    "sm_90", "3.9.0", "fc1", "linear_descriptor_kernel", "BLOCK_M=128 BLOCK_N=128", "bf16",
    128, 0, 115 << 10, 227 << 10, "wgmma", 8, "",
)  # fmt: skip


@pytest.mark.parametrize(
    "change, words",
    [
        ({"spill_bytes": 8}, "spills 8 bytes"),
        ({"smem_bytes": 228 << 10}, "of shared memory"),
        ({"matrix": "none"}, "off the matrix unit"),
        ({"dtype": "fp32"}, "rounds fp32 to TF32"),
        ({"matrix": "mma.sync"}, "mma.sync for a wide tile"),
        ({"together": 3}, "too much shared memory for 3 blocks"),
        ({"starts_early": True}, "does not wait"),
        ({"serialised": "(C7515)"}, "serialised wgmma: (C7515)"),
    ],
)
def test_each_fault_is_found(change, words):
    assert GOOD.faults() == []
    faults = dataclasses.replace(GOOD, **change).faults()
    assert any(words in fault for fault in faults)


@pytest.mark.parametrize(
    "change",
    [{"dtype": "fp32", "matrix": "none"}, {"kernel": "_layer_norm_kernel", "matrix": "none"}],
)
def test_what_needs_no_matrix_unit(change):
    assert dataclasses.replace(GOOD, **change).faults() == []


def test_dependent_launches_wait():
    found, bad = faults("sm_90", only="ViT-B/16-224 batch 1 qkv, dependent")
    assert [(c.starts_early, c.waits) for c in found] == [(True, 1)]
    assert not bad


def test_a_failure_is_reported_with_its_words():
    with pytest.raises(RuntimeError, match="compiling for sm_7 failed"):
        list(static_check.run("sm_7"))


def test_the_interpreter_cannot_compile():
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("this process is not interpreting")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        next(static_check.compile_all("sm_90", False))
