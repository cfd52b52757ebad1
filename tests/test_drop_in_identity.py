"""An accelerated model is, to everybody who looks at it, transformers' own: class name, keys, files, copies."""

import copy
import functools
import gc
import inspect
import io
import json
import pickle
import weakref
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModel, ViTConfig, ViTForImageClassification, ViTModel

import vit_fast
from models import TINY, hf_model
from twins import PIXELS, assert_fast, assert_same
from vit_fast.state import KEY, state_of


def test_looks_like_the_stock_model(pair):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    assert str(type(fast)) == str(type(stock))
    assert isinstance(fast, type(stock))
    assert repr(fast) == repr(stock)
    assert inspect.signature(type(fast).forward) == inspect.signature(type(stock).forward)
    assert type(fast).forward.__doc__ == type(stock).forward.__doc__
    assert list(fast.state_dict()) == list(stock.state_dict())
    assert [n for n, _ in fast.named_modules()] == [n for n, _ in stock.named_modules()]
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in stock.named_parameters()]
    assert not set(dict(fast.named_buffers())) ^ set(dict(stock.named_buffers()))
    assert fast.config.to_dict() == stock.config.to_dict()
    assert (fast.dtype, fast.device, fast.num_parameters()) == (
        stock.dtype,
        stock.device,
        stock.num_parameters(),
    )
    assert vars(fast).keys() - vars(stock).keys() == {KEY}


def test_restored_exactly_as_it_was():
    stock = hf_model(ViTForImageClassification).requires_grad_(False)
    stock.set_attn_implementation("sdpa")
    before, fields = type(stock), set(vars(stock))
    with torch.no_grad():
        theirs = stock(PIXELS)
        assert vit_fast.accelerate(stock) is stock
        stock(PIXELS)
        assert vit_fast.restore(stock) is stock
        assert type(stock) is before is ViTForImageClassification
        assert set(vars(stock)) == fields
        assert_same(stock(PIXELS), theirs)
    assert vit_fast.restore(stock) is stock


def saved(model, folder: Path, **options) -> dict[str, bytes]:
    model.save_pretrained(folder, **options)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_saves_the_very_files_that_the_stock_model_saves(pair, tmp_path):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    theirs = saved(stock, tmp_path / "theirs")
    assert saved(fast, tmp_path / "ours") == theirs
    assert "model.safetensors" in theirs
    assert json.loads(theirs["config.json"])["architectures"] == [type(stock).__name__]
    assert vit_fast.explain(fast)[0].fast  # still accelerated
    small = dict(max_shard_size="50KB")
    shards = saved(stock, tmp_path / "theirs in shards", **small)
    assert saved(fast, tmp_path / "ours in shards", **small) == shards
    assert len(shards) > 3


@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification"])
def test_the_importable_class(name, tmp_path):
    ours, theirs = getattr(vit_fast, name), getattr(transformers, name)
    assert issubclass(ours, theirs)
    stock = hf_model(theirs)
    stock.save_pretrained(tmp_path)
    fast = ours.from_pretrained(tmp_path).eval()
    assert isinstance(fast, ours)
    assert_fast(fast, theirs.from_pretrained(tmp_path).eval(), PIXELS)
    fast, report = ours.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(fast, ours)
    assert not report["missing_keys"]
    half = ours.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    # and back
    fast.save_pretrained(tmp_path / "again")
    again = theirs.from_pretrained(tmp_path / "again").eval()
    assert type(again) is theirs
    assert_fast(fast.eval(), again, PIXELS)
    assert type(vit_fast.accelerate(AutoModel.from_pretrained(tmp_path))).__name__ == "ViTModel"


def test_made_from_a_config():
    torch.manual_seed(0)
    fast = vit_fast.ViTModel(ViTConfig(**TINY)).eval()
    torch.manual_seed(0)
    stock = ViTModel(ViTConfig(**TINY)).eval()
    assert vit_fast.explain(fast)[0].fast
    assert_fast(fast, stock, PIXELS)
    assert isinstance(vit_fast.ViTModel._from_config(ViTConfig(**TINY)), vit_fast.ViTModel)


def test_a_subclass_of_the_importable_class_runs_its_own_forward():
    class Mine(vit_fast.ViTModel):
        def forward(self, pixel_values):
            return super().forward(2 * pixel_values)

    torch.manual_seed(0)
    mine = Mine(ViTConfig(**TINY)).eval()
    torch.manual_seed(0)
    stock = ViTModel(ViTConfig(**TINY)).eval()
    with torch.no_grad():
        assert_same(mine(PIXELS), stock(2 * PIXELS))
        with pytest.warns(UserWarning, match="found nothing to do"):
            vit_fast.accelerate(mine)
        assert_same(copy.deepcopy(mine)(PIXELS), stock(2 * PIXELS))


# transformers' names before 5.10
OLD_NAMES = (
    (r"layers.", "encoder.layer."),
    (r"attention.q_proj", "attention.attention.query"),
    (r"attention.k_proj", "attention.attention.key"),
    (r"attention.v_proj", "attention.attention.value"),
    (r"attention.o_proj", "attention.output.dense"),
    (r"mlp.fc1", "intermediate.dense"),
    (r"mlp.fc2", "output.dense"),
)


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, value in state.items():
        for new, old in OLD_NAMES:
            name = name.replace(new, old)
        renamed[name] = value.contiguous()
    return renamed


@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification"])
def test_checkpoints_with_old_names(name, tmp_path):
    stock = hf_model(getattr(transformers, name)).requires_grad_(False)
    stock.set_attn_implementation("sdpa")
    stock.config.save_pretrained(tmp_path)
    torch.save(old_names(stock.state_dict()), tmp_path / "pytorch_model.bin")
    assert any(
        "encoder.layer.1.attention.attention.query" in key for key in old_names(stock.state_dict())
    )
    fast = getattr(vit_fast, name).from_pretrained(tmp_path).eval()
    assert_fast(fast, stock, PIXELS)
    # and what it saves is what the stock class saves
    fast.save_pretrained(tmp_path / "ours")
    stock.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()


def torch_saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": torch_saved,
    "deepcopy of a container": lambda m: copy.deepcopy(torch.nn.ModuleList([m]))[0],
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_are_accelerated_and_on_their_own(pair, copied):
    stock, fast = pair
    vit_fast.accelerate(fast, cpu="plain")
    assert_fast(fast, stock, PIXELS)
    twin = copied(fast)
    assert type(twin) is type(fast)
    assert vit_fast.explain(twin)[0].fast_calls == 0
    assert_fast(twin, stock, PIXELS)
    assert state_of(twin) is not state_of(fast)
    assert state_of(twin).owner() is twin
    assert state_of(twin).cpu == "plain"
    if copied is not copy.copy:
        with torch.no_grad():
            for p in twin.parameters():
                p.mul_(2)
            twin(PIXELS)
    assert_fast(fast, stock, PIXELS)


def test_a_pickle_names_the_stock_class(pair):
    """pickle finds classes by name, and the fast one has the stock one's."""
    dumped = pickle.dumps(pair[1])
    assert b"vit_fast.swap" in dumped  # accelerates again on load
    assert type(vit_fast.restore(pickle.loads(dumped))) is type(pair[0])


def test_nothing_keeps_a_model_alive(pair):
    """Freed with its last reference, not at the next garbage collection: GPU memory is waiting for it."""
    with torch.no_grad():
        fast = copy.deepcopy(pair[1])
        fast(PIXELS)
        weight = weakref.ref(next(fast.parameters()))
        owner = weakref.ref(fast)
    gc.collect()
    gc.disable()
    try:
        del fast
        assert owner() is None
        assert weight() is None
    finally:
        gc.enable()


def test_stock_models_are_untouched_by_the_import():
    model = hf_model(ViTModel)
    assert type(model) is transformers.ViTModel
    assert "vit_fast" not in transformers.ViTModel.forward.__module__


def test_the_class_itself():
    assert pickle.loads(pickle.dumps(vit_fast.ViTModel)) is vit_fast.ViTModel
    make = pickle.loads(pickle.dumps(functools.partial(vit_fast.ViTModel.from_pretrained, "x")))
    assert make.func.__self__ is vit_fast.ViTModel
    classifier = hf_model(ViTForImageClassification)
    assert isinstance(classifier.vit, vit_fast.ViTModel)
    assert issubclass(ViTModel, vit_fast.ViTModel)
    assert not isinstance(classifier, vit_fast.ViTModel)
    assert not isinstance(None, vit_fast.ViTModel)
