"""Measured tables: which one is in use, what is looked up in it, and every reason to refuse one."""

import json
import os
import stat
import types
import warnings
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
import triton

from vit_fast.kernels import attention, linear, linear_norm, tables, tuning

GPU = tuning.Gpu("NVIDIA Test-GPU 80GB", 90, 132, 227 << 10)
LINEAR = dict(M=1000, N=768, K=3072, dtype="bf16", epilogue="gelu")
ATTENTION = dict(B=8, H=12, Nq=197, N=197, D=64, dtype="bf16")
ONE_PASS = dict(block_m=64, chunks=(128, 64, 16), block_n=64, num_warps=4, num_stages=1)
CONFIG = dict(block_m=64, block_n=128, block_k=64, num_warps=4, num_stages=4)


def entry(op="linear", config=CONFIG, **changes):
    return {"op": op, "shape": {**(LINEAR if op == "linear" else ATTENTION), **changes}, "config": config}  # fmt: skip


def table(*entries, **changes):
    return {
        "schema": tables.SCHEMA,
        "gpu": tuning.hardware(GPU),
        "versions": {"triton": triton.__version__, "torch": torch.__version__},
        "date": "2026-11-21",
        "switches": {"pdl": {"on": True}, "fold": {"on": False}},
        "entries": list(entries),
        **changes,
    }


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """The user's cache and the folder that ships, both empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shipped = tmp_path / "tuned"
    monkeypatch.setattr(tables, "shipped_path", lambda name: shipped / f"{tables.slug(name)}.json")
    tuning.forget()
    yield tmp_path
    tuning.forget()


def put(contents, where=tables.user_path):
    path = tables.shipped_path(GPU.name) if where == "shipped" else where(GPU.name)
    tables.write(path, contents)
    tuning.forget()
    return path


def test_paths(monkeypatch, tmp_path):
    assert tables.slug("NVIDIA H200") == "nvidia_h200"
    assert tables.slug("NVIDIA A100-SXM4-80GB") == "nvidia_a100_sxm4_80gb"
    assert tables.user_path("NVIDIA H200") == tmp_path / "cache/vit-fast/tuned/nvidia_h200.json"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert tables.cache_folder() == tmp_path / ".cache/vit-fast"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert tables.cache_folder() is None
    assert tables.user_path("NVIDIA H200") is None
    assert tuning.which_table(GPU).kind == "rule"


def test_without_a_table_the_rule_decides(recwarn):
    assert tuning.tuned(GPU, "linear", **LINEAR) is None
    assert tuning.tuned(GPU, "attention", **ATTENTION) is None
    assert not tuning.switch(GPU, "pdl")
    assert tuning.which_table(GPU) == tuning.Source("rule")
    assert not recwarn.list


def test_the_user_s_table_goes_before_the_one_that_ships():
    put(table(entry(config={**CONFIG, "block_m": 128})), "shipped")
    assert tuning.which_table(GPU).kind == "shipped"
    assert tuning.tuned(GPU, "linear", **LINEAR)["block_m"] == 128
    assert tuning.switch(GPU, "pdl")
    path = put(table(entry(), switches={}, date="2027-01-01"))
    found = tuning.which_table(GPU)
    assert (found.kind, found.path, found.date, found.refused) == ("user", path, "2027-01-01", ())
    assert found.versions["triton"] == triton.__version__
    assert tuning.tuned(GPU, "linear", **LINEAR) == CONFIG
    assert not tuning.switch(GPU, "pdl")


def test_a_config_is_the_kernel_s_own():
    put(table(entry(), entry("attention", {**ONE_PASS, "chunks": [128, 64, 16]})))
    assert linear.Config(**tuning.tuned(GPU, "linear", **LINEAR)).block_m == 64
    config = attention.Config(**tuning.tuned(GPU, "attention", **ATTENTION))
    assert config == attention.Config(**ONE_PASS)
    assert hash(config), "the kernels keep it in an lru_cache"


def test_what_is_looked_up_is_the_caller_s_to_change():
    put(table(entry()))
    tuning.tuned(GPU, "linear", **LINEAR)["block_m"] = 1
    assert tuning.tuned(GPU, "linear", **LINEAR) == CONFIG


NEAREST = {667: 64, 1000: 64, 1200: 64, 1260: 256, 1500: 256, 2250: 256, 2260: None, 660: None}


@pytest.mark.parametrize("M, found", NEAREST.items())
def test_the_nearest_rows_within_half_as_much_again(M, found):
    put(table(entry(), entry(M=1500, config={**CONFIG, "block_m": 256})))
    config = tuning.tuned(GPU, "linear", **{**LINEAR, "M": M})
    assert config is None if found is None else config["block_m"] == found


def test_where_the_rule_s_own_choice_was_fastest_it_stays():
    put(table(entry(config=None), entry(M=1500)))
    assert tuning.tuned(GPU, "linear", **{**LINEAR, "M": 1100}) is None
    assert tuning.tuned(GPU, "linear", **{**LINEAR, "M": 1400}) == CONFIG


@pytest.mark.parametrize("other", [dict(N=769), dict(K=768), dict(dtype="fp16"), dict(epilogue="bias")])  # fmt: skip
def test_all_but_the_rows_must_be_equal(other):
    put(table(entry()))
    assert tuning.tuned(GPU, "linear", **{**LINEAR, **other}) is None
    assert tuning.tuned(replace(GPU, name="NVIDIA Other"), "linear", **LINEAR) is None


def test_a_lookup_with_other_fields_is_a_mistake():
    with pytest.raises(TypeError, match=r"takes \('M', 'N', 'K', 'dtype', 'epilogue'\), got"):
        tuning.tuned(GPU, "linear", M=1, N=1, K=1)


def test_names():
    assert [tuning.dtype_name(d) for d in (torch.bfloat16, torch.float16, torch.float32)] == [
        "bf16",
        "fp16",
        "fp32",
    ]


def test_a_table_says_what_a_gpu_is_and_a_gpu_what_its_table_says(monkeypatch):
    properties = types.SimpleNamespace(
        name=GPU.name,
        major=9,
        minor=0,
        multi_processor_count=GPU.sms,
        shared_memory_per_block_optin=GPU.smem,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    device = torch.device("cuda", 0)
    assert tuning.gpu_of(device) == GPU
    put(table(entry()))
    found = tuning.gpu_of(device)
    assert found == replace(GPU, pdl=True)
    assert tuning.tuned(found, "linear", **LINEAR) == CONFIG


@pytest.mark.parametrize("op", ["linear", "linear_norm", "attention"])
def test_the_kernels_take_what_was_measured(op):
    kernel = {"linear": linear, "linear_norm": linear_norm, "attention": attention}[op]
    if op == "attention":
        shape, args = ATTENTION, (8, 12, 197, 197, 64, torch.bfloat16, GPU)
        config = ONE_PASS
    else:
        shape = {k: v for k, v in LINEAR.items() if k in tables.FIELDS[op]}
        epilogue = ("gelu",) * (op == "linear")
        args = (1000, 768, 3072, torch.bfloat16, *epilogue, True, True, GPU)
        config = {**CONFIG, "num_stages": 2}
    rule = kernel.config_for(*args)
    put(table({"op": op, "shape": shape, "config": config}))
    assert kernel.config_for(*args) == kernel.Config(**config) != rule


GOOD = table(entry())
BROKEN = {
    "not JSON": ("{", "it is not JSON"),
    "not text": (b"\xff\xfe\x00", "it is not JSON"),
    "nested": ("[" * 100_000, "it is not JSON"),
    "a list": ([], "it is not a JSON object"),
    "schema": ({**GOOD, "schema": 2}, "its schema is 2, this vit-fast reads 1"),
    "gpu": ({**GOOD, "gpu": {**tuning.hardware(GPU), "sms": 66}}, "it was measured on"),
    "no gpu": ({k: v for k, v in GOOD.items() if k != "gpu"}, "it was measured on None"),
    "triton": ({**GOOD, "versions": {"triton": "3.1.9"}}, "measured with Triton 3.1.9, this is"),
    "no versions": ({**GOOD, "versions": 3}, "it has no versions"),
    "no date": ({**GOOD, "date": None}, "it has no date"),
    "switches": ({**GOOD, "switches": {"pdl": {"on": 1}}}, "its switches"),
    "entries": ({**GOOD, "entries": {}}, "no list of entries"),
    "failed": ({**GOOD, "failed": [3]}, "its list of what failed"),
    "op": (table(entry(), {**entry(), "op": "os"}), "entry 1 .* op is 'os', expected one of linear"),
    "shape": (table({**entry(), "shape": {"M": 1}}), "shape is {'M': 1}, expected M, N, K"),
    "rows of 0": (table(entry(M=0)), "M is 0, expected a positive"),
    "a word": (table(entry(M="all")), "M is 'all', expected int"),
    "a number": (table(entry(dtype=16)), "dtype is 16, expected str"),
    "no config": (table({"op": "linear", "shape": LINEAR}), r"config is \(\), expected"),
    "unknown field": (table(entry(config={**CONFIG, "cluster": 2})), "unexpected keyword .*cluster"),
    "missing field": (table(entry(config={"block_m": 64})), "missing 4 required"),
    "type": (table(entry(config={**CONFIG, "block_m": "64"})), "no block_m of '64', expected"),
    "bool": (table(entry(config={**CONFIG, "num_warps": True})), "no num_warps of True"),
    "parts of K": (table(entry(config={**CONFIG, "splits": 2})), "K in 2 parts is for linear_norm"),
    "few keys": (
        table(entry("attention", {**ONE_PASS, "chunks": [128, 64, 0]})),
        "192 keys is not for 197 keys",
    ),
    "last rows": (
        table(entry("attention", {**ONE_PASS, "tail_m": 16}, Nq=100)),
        "16 rows does not hold what 100 queries leave of 64",
    ),
    "fp32 by the matrix unit": (
        table(entry("attention", ONE_PASS, dtype="fp32")),
        "not for 197 keys, head_dim 64, fp32",
    ),
    "tuple": (
        table(entry("attention", {**ONE_PASS, "chunks": [64, 0]})),
        "no chunks of",
    ),
}  # fmt: skip


def write_raw(contents):
    path = put(GOOD)
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        path.write_text(contents if isinstance(contents, str) else json.dumps(contents))
    return path


@pytest.mark.parametrize("contents, reason", BROKEN.values(), ids=BROKEN)
def test_a_table_that_cannot_be_used_is_named_once(contents, reason):
    path = write_raw(contents)
    with pytest.warns(UserWarning, match=reason) as caught:
        for M in (1000, 1100):
            assert tuning.tuned(GPU, "linear", **{**LINEAR, "M": M}) is None
        assert not tuning.switch(GPU, "pdl")
    assert len(caught) == 1
    message = str(caught[0].message)
    assert f"the tuning table {path} is not used" in message
    assert "`vit-fast tune` writes a new one" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuning.which_table(GPU).refused[0] in message


def test_a_table_that_ships_serves_where_the_user_s_is_broken():
    write_raw("{")
    tables.write(tables.shipped_path(GPU.name), GOOD)
    with pytest.warns(UserWarning, match="it is not JSON"):
        assert tuning.tuned(GPU, "linear", **LINEAR) == CONFIG
    assert tuning.which_table(GPU).kind == "shipped"


def test_another_patch_release_of_triton_serves():
    put({**GOOD, "versions": {"triton": f"{tables.minor(triton.__version__)}.99+git1"}})
    assert tuning.tuned(GPU, "linear", **LINEAR) == CONFIG


def test_a_table_that_cannot_be_read(monkeypatch):
    put(GOOD).unlink()
    tables.user_path(GPU.name).mkdir()  # a folder in its place
    with pytest.warns(UserWarning, match=r"it cannot be read \(Is a directory\)"):
        assert tuning.tuned(GPU, "linear", **LINEAR) is None


def test_a_file_in_place_of_the_cache_folder_is_no_table(folders, recwarn):
    (folders / "cache").write_text("")
    assert tuning.tuned(GPU, "linear", **LINEAR) is None
    assert not recwarn.list


def test_a_new_table_counts_after_forget():
    @tuning.cached
    def rests_on_a_lookup():
        return tuning.tuned(GPU, "linear", **LINEAR)

    assert rests_on_a_lookup() is None
    tables.write(tables.user_path(GPU.name), GOOD)
    assert rests_on_a_lookup() is None
    tuning.forget()
    assert rests_on_a_lookup() == CONFIG


def test_a_table_is_written_whole_or_not_at_all():
    path = put(GOOD)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(TypeError):
        tables.write(path, {**GOOD, "entries": [object()]})
    assert json.loads(path.read_text()) == GOOD
    assert os.listdir(path.parent) == [path.name]


def test_what_ships_can_be_read():
    """Each table in the folder is of the GPU that its name says, and of this schema."""
    for path in (tables.Path(tables.__file__).parent / "tuned").glob("*.json"):
        found = json.loads(path.read_text())
        assert path.stem == tables.slug(found["gpu"]["name"])
        assert tables.read(path, found["gpu"], found["versions"]["triton"])
