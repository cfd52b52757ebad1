"""Details of the drop-in that nothing else would notice: each of these lines was once broken on purpose, unseen."""

import copy
import pickle
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vit_fast
from models import SPEC, TINY, hf_model, images
from twins import PIXELS, assert_fast, assert_stock, reason, twins
from vit_fast import ViT
from vit_fast.state import state_of
from vit_fast.watch import Watch
from vit_fast.weights import Derived


@pytest.fixture
def pair():
    return twins(ViTModel)


# what a call asks for


def test_the_loss_is_divided_by_what_trainer_says():
    stock, fast = twins(ViTForImageClassification)
    labels = torch.tensor([1, 2])
    seven = assert_fast(fast, stock, PIXELS, labels=labels, num_items_in_batch=7).loss
    assert not torch.isclose(seven, assert_fast(fast, stock, PIXELS, labels=labels).loss)


def test_sizes_that_differ_in_one_axis(pair):
    for pixels in (images(2, 3, 32, 40), images(2, 3, 40, 32)):
        with pytest.raises(ValueError, match="doesn't match model"):
            pair[1](pixels)


def test_kinds_of_tensors(pair):
    stock, fast = pair
    with torch.no_grad():
        other = PIXELS.as_subclass(type("Other", (torch.Tensor,), {}))
        fast(other)
        assert "not a plain tensor" in reason(fast)
        with pytest.raises(RuntimeError, match="Input type"):  # transformers' own
            fast(PIXELS.to_sparse())
    assert_fast(fast, stock, nn.Parameter(PIXELS, requires_grad=False))


def test_return_dict_that_is_false_by_another_name():
    stock, fast = twins(ViTForImageClassification)
    assert type(assert_fast(fast, stock, PIXELS, return_dict=0)) is tuple


# what counts in a model


@pytest.mark.parametrize("where, name", [("dropout", "p"), ("attention", "attention_dropout")])
def test_a_dropout_that_is_turned_on(pair, where, name):
    stock, fast = pair
    fast.train()
    assert_fast(fast, stock, PIXELS)
    setattr(getattr(fast.layers[0], where), name, 0.3)
    fast(PIXELS)
    assert "drops out 0.3" in reason(fast)


def test_one_attention_in_training_mode():
    stock, fast = twins(ViTModel, attention_probs_dropout_prob=0.2)
    assert_fast(fast, stock, PIXELS)
    fast.layers[0].attention.train()
    fast(PIXELS)
    assert "drops out 0.2" in reason(fast)


@pytest.mark.parametrize("change", [
    lambda m: m.vit.register_forward_hook(lambda *a: None),
    lambda m: setattr(m.vit, "forward", m.vit.forward),
    lambda m: setattr(m.vit, "__class__", type("Sub", (ViTModel,), {})),
], ids=["hook", "forward", "subclass"])  # fmt: skip
def test_the_encoder_inside_a_classifier(change):
    stock, fast = twins(ViTForImageClassification)
    assert_fast(fast, stock, PIXELS)
    change(fast)
    fast(PIXELS)
    assert reason(fast)


@pytest.mark.parametrize(
    "field, value", [("is_causal", False), ("is_causal", True), ("tie_last_hidden_states", False)]
)
def test_fields_of_the_config(pair, field, value):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    for model in pair:
        setattr(model.config, field, value)
    assert_stock(fast, stock, field, PIXELS)


def test_another_config(pair):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    for model in pair:
        model.config = copy.deepcopy(model.config)
        model.config.output_hidden_states = True
    with torch.no_grad():
        assert fast(PIXELS).hidden_states is not None


def test_an_attention_function_of_somebody_else_by_the_old_name(monkeypatch):
    def mine(*args, **kwargs):
        raise KeyError

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", mine)
    with pytest.raises(KeyError):
        twins(ViTModel)[1](PIXELS)


def test_weights_of_a_class_of_their_own(pair):
    linear = pair[1].layers[0].mlp.fc1
    special = type("Special", (torch.Tensor,), {})
    linear._parameters["weight"] = linear.weight.detach().as_subclass(special)
    with torch.no_grad():
        pair[1](PIXELS)
    assert "plain parameters" in reason(pair[1])


def test_gradients_of_tensors_in_the_place_of_parameters(pair):
    stock, fast = pair
    other = {n: (1.5 * p).requires_grad_(True) * 1.0 for n, p in stock.named_parameters()}
    assert torch.func.functional_call(fast, other, (PIXELS,))[0].requires_grad
    assert "a gradient is wanted" in reason(fast)


def test_pre_hooks_for_all_modules(pair):
    seen = []
    handle = nn.modules.module.register_module_forward_pre_hook(lambda m, a: seen.append(type(m)))
    try:
        with torch.no_grad():
            assert_stock(pair[1], pair[0], "hooks for all modules", PIXELS)
    finally:
        handle.remove()
    assert seen.count(nn.LayerNorm) == 2 * 5


# what is kept


@pytest.mark.parametrize("keeper", ["watch", "derived"])
def test_memory_is_held_while_its_address_means_something(keeper):
    array = np.zeros((3, 3), "float32")
    model = nn.Linear(3, 3)
    model.weight = nn.Parameter(torch.from_numpy(array), requires_grad=False)
    alive = weakref.ref(array)
    del array
    watch, derived = Watch(model.modules()), Derived()
    if keeper == "derived":
        del watch
        derived.get("key", [model.weight], lambda: model.weight + 1)
    model.weight.data = torch.zeros(3, 3)
    assert alive() is not None


def test_the_same_bytes_as_another_dtype():
    t = torch.ones(4, dtype=torch.float16)
    derived = Derived()
    derived.get("key", [t], lambda: t + 0)
    t.data = t.data.view(torch.bfloat16)
    assert derived.get("key", [t], lambda: t + 0).dtype == torch.bfloat16


def test_a_runtime_that_has_looked_for_gradients_is_pickled():
    vit = ViT(SPEC).eval().requires_grad_(False)
    vit(images(1, 3, 32, 32))
    assert pickle.loads(pickle.dumps(vit))._watch is None


def test_one_more_module_beside_parameters_of_one_element():
    root = nn.Sequential(nn.Linear(1, 1))
    watch = Watch(root[0].modules(), root=root)
    root.append(nn.Identity())
    assert not watch.unchanged()


def test_nothing_is_kept_of_another_dtype(pair):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    half = vit_fast.accelerate(copy.deepcopy(stock).half())
    fast.half()
    with torch.no_grad():
        for model in (fast, half):
            model(PIXELS.half())
    assert vit_fast.explain(fast)[0].nbytes == vit_fast.explain(half)[0].nbytes


def test_what_was_packed_is_kept_over_a_change_of_mode(pair):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    bound = state_of(fast).bound
    fast.train()
    assert_fast(fast, stock, PIXELS)
    assert state_of(fast).bound is not bound
    assert state_of(fast).bound.engine is bound.engine


def test_a_copy_of_the_dict_alone(pair):
    stock, fast = pair
    vit_fast.accelerate(fast, cpu="plain")
    assert_fast(fast, stock, PIXELS)
    other = type(fast).__new__(type(fast))
    other.__dict__ = fast.__dict__.copy()
    assert state_of(other) is not state_of(fast)
    assert state_of(other).cpu == "plain"


# the class


def test_a_subclass_saves_and_loads_as_itself(tmp_path):
    class Mine(vit_fast.ViTModel):
        pass

    mine = Mine(ViTConfig(**TINY))
    mine.save_pretrained(tmp_path)
    assert type(mine) is Mine
    assert type(Mine.from_pretrained(tmp_path)) is Mine


def test_saving_that_fails(pair, tmp_path):
    cls = type(pair[1])
    with pytest.raises((AttributeError, TypeError, ValueError)):
        pair[1].save_pretrained(tmp_path, max_shard_size="nonsense")
    assert type(pair[1]) is cls


def test_loaded_with_offloading(tmp_path):
    pytest.importorskip("accelerate")
    hf_model(ViTModel).save_pretrained(tmp_path / "model")
    parts = {"embeddings": "cpu", "layers": "disk", "layernorm": "cpu", "pooler": "cpu"}
    model = vit_fast.ViTModel.from_pretrained(
        tmp_path / "model", device_map=parts, offload_folder=str(tmp_path / "offload")
    )
    assert type(model) is ViTModel


def test_sharded_the_old_way():
    model = hf_model(ViTModel)
    layer = model.layers[0]
    layer.__class__ = type("FullyShardedDataParallel", (type(layer),), {})
    with pytest.warns(UserWarning, match="FSDP"):
        vit_fast.accelerate(model)


# what is found and said


def test_refresh_keeps_the_choice_and_the_counts(pair):
    stock, fast = pair
    vit_fast.accelerate(fast, cpu="plain")
    assert_fast(fast, stock, PIXELS)
    (found,) = vit_fast.explain(vit_fast.refresh(fast))
    assert (found.ops, found.fast_calls, found.nbytes) == ("torch", 1, 0)


def test_neighbours_whose_names_begin_alike(pair):
    both = types.SimpleNamespace(model=nn.ModuleDict({"a": pair[0], "ab": copy.deepcopy(pair[0])}))
    vit_fast.accelerate(both)
    assert [(e.name, e.fast) for e in vit_fast.explain(both)] == [("model.a", True), ("model.ab", True)]  # fmt: skip


def test_reasons_of_now_and_of_the_last_time(pair):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    handle = fast.layers[0].mlp.register_forward_hook(lambda *a: None)
    (found,) = vit_fast.explain(fast)
    assert not found.fast
    assert "forward hooks" in found.reason
    assert "forward hooks" in found.last_reason
    handle.remove()
    with torch.no_grad():
        fast(PIXELS, attention_mask=torch.ones(2, 17, dtype=torch.bool))
    fast.layers[0].mlp.register_forward_hook(lambda *a: None)
    (found,) = vit_fast.explain(fast)
    assert "forward hooks" in found.reason
    assert "attention_mask" in found.last_reason
