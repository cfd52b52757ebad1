"""What ships is compiled for GPUs that are not here: at most 130 kernels by default, all if slow."""

import dataclasses
import os

import pytest

pytest.importorskip("triton")
import triton

from vit_fast.kernels import static_check, tables, tuning


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


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90", "sm_100"])
def test_gated_layers(arch):
    """In bf16 and fp16, and with dependent launches where there are any; on sm_90 no wgmma is serialised."""
    found, bad = faults(arch, only=" gated")
    by_descriptor = arch in ("sm_90", "sm_100")
    kernel = "gated_descriptor_kernel" if by_descriptor else "gated_pointer_kernel"
    assert {(c.kernel, c.dtype) for c in found} == {(kernel, "bf16"), (kernel, "fp16")}
    assert {c.starts_early for c in found} == ({True, False} if by_descriptor else {False})
    assert not bad


@pytest.mark.parametrize(
    "arch, only, kernels",
    [
        ("sm_80", ", rope", ["flash_kernel", "flash_kernel"]),
        ("sm_90", ", rope", ["one_pass_kernel", "flash_kernel"]),
        ("sm_90", "-B NaFlex 256 attention, mask", ["one_pass_kernel"]),
    ],
)
def test_attention_with_rope_and_with_masks(arch, only, kernels):
    found, bad = faults(arch, only=only)
    assert [c.kernel for c in found] == kernels
    assert not bad


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
        ({"starts_early": True, "waits": 1, "early": 2}, "touches memory before it waits"),
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
    """Each kernel of a forward pass, before it touches memory."""
    found, bad = faults("sm_90", only=", dependent")
    assert {(c.starts_early, c.waits, c.early) for c in found} == {(True, 1, 0)}
    assert not bad
    assert {c.kernel for c in found} >= {
        "_patch_embed_kernel", "_layer_norm_kernel", "_row_statistics_kernel", "_sum_norm_kernel",
        "linear_descriptor_kernel", "gated_descriptor_kernel", "one_pass_kernel",
    }  # fmt: skip


def test_what_comes_before_the_wait():
    """A hint to the L2 cache may; a load, a copy and a store may not."""
    hint = "cp.async.bulk.prefetch.L2.global [%rd1], %r2; mov.u32 %r3, 0;"
    assert not static_check.accesses(f"\tmov.u32 %r1, 1;\n\t{hint}\n\tld.param.u64 %rd1, [p];\n")
    for line in (
        "ld.global.v4.b32 { %r1, %r2 }, [ %rd1 + 0 ];",
        "@%p1 ld.global.b16 { %rs1 }, [ %rd1 + 0 ];",
        "st.global.b32 [ %rd1 + 0 ], { %r1 };",
        "cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10;",
        "@%p3 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1];",
    ):
        assert static_check.accesses(f"\tmov.u32 %r1, 1;\n\t{line}\n") == 1


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A table in the user's cache for a GPU of sm_90, with configs that no rule would choose."""
    gpu = tuning.Gpu("NVIDIA Test-GPU", 90, 100, 227 << 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    linear = {"block_m": 64, "block_n": 32, "block_k": 32, "num_warps": 4, "num_stages": 2}
    shape = {"M": 500, "N": 768, "K": 768, "dtype": "fp16"}
    pieces = {"B": 2, "H": 2, "Nq": 90, "N": 90, "D": 64, "dtype": "bf16"}
    flash = {"block_m": 64, "chunks": [0, 0, 0], "block_n": 32, "num_warps": 4, "num_stages": 2}
    wide = {**linear, "block_m": 128, "block_n": 256}
    entries = [
        ("linear", {**shape, "epilogue": "gelu"}, linear),
        ("linear", {**shape, "epilogue": "scale+residual"}, wide),
        ("linear_norm", shape, {**linear, "splits": 2}),
        ("attention", pieces, flash),
        ("attention", {**pieces, "N": 77, "Nq": 77}, None),
    ]
    table = {
        "schema": tables.SCHEMA,
        "gpu": tuning.hardware(gpu),
        "versions": {"triton": triton.__version__},
        "date": "2026-11-21",
        "switches": {"pdl": {"on": True}, "fold": {"on": False}},
        "entries": [dict(zip(("op", "shape", "config"), entry)) for entry in entries],
    }
    tables.write(tables.user_path(gpu.name), table)
    other = {**table, "gpu": {**table["gpu"], "name": "Another", "arch": 80}}
    tables.write(tables.user_path("another"), other)
    tables.user_path("broken").write_text("{")


def test_what_was_measured_on_gpus_of_this_kind(measured):
    """Every entry is compiled, as the user's launches would; a kernel that spills is found."""
    found, bad = faults("sm_90", only="tuned ")
    assert all("on NVIDIA Test-GPU" in c.launch and c.starts_early for c in found)
    tiles = [c.config for c in found if c.kernel == "linear_descriptor_kernel"]
    assert [t.split(" stages")[0].rsplit("BLOCK_M", 1)[1] for t in tiles] == [
        "=64 BLOCK_N=32 BLOCK_K=32 SLICES=1 warps=4",
        "=128 BLOCK_N=256 BLOCK_K=32 SLICES=1 warps=4",
        "=64 BLOCK_N=32 BLOCK_K=32 SLICES=1 warps=4",
    ]
    assert {c.dtype for c in found if "linear" in c.launch} == {"fp16"}
    assert "BLOCK_N=32" in next(c.config for c in found if c.kernel == "flash_kernel")
    assert "Nq=77" in next(c.launch for c in found if c.kernel == "one_pass_kernel")
    assert bad and all("BLOCK_N=256" in config for _, config, _ in bad)
    assert any(fault.startswith("spills") for *_, why in bad for fault in why)


def test_a_failure_is_reported_with_its_words():
    with pytest.raises(RuntimeError, match="compiling for sm_7 failed"):
        list(static_check.run("sm_7"))


def test_the_interpreter_cannot_compile():
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("this process is not interpreting")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        next(static_check.compile_all("sm_90", False))
