"""Models that are put together in ways of their own: the answer is transformers' all the same."""

import copy
import functools
import types
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from transformers import ViTForImageClassification, ViTModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit import modeling_vit

import vit_fast
from models import hf_model, images
from twins import PIXELS, assert_fast, assert_same, assert_stock, reason, twins


def no_bias(linear: nn.Linear) -> None:
    linear.bias = None


def other_heads(model: ViTModel) -> None:
    attention = model.layers[1].attention
    attention.head_dim, attention.scaling = 16, 16**-0.5


def pruned_head(model: ViTModel) -> None:
    attention = model.layers[1].attention
    for name in "qkv":
        linear = getattr(attention, f"{name}_proj")
        linear.weight, linear.bias = (nn.Parameter(p.detach()[:32]) for p in (linear.weight, linear.bias))  # fmt: skip
    attention.o_proj.weight = nn.Parameter(attention.o_proj.weight.detach()[:, :32])


def sliced_data(model: ViTModel) -> None:
    fc1, fc2 = model.layers[0].mlp.fc1, model.layers[0].mlp.fc2
    fc1.weight.data, fc1.bias.data = fc1.weight.data[:48], fc1.bias.data[:48]
    fc2.weight.data = fc2.weight.data[:, :48]


def plain_weight(model: ViTModel) -> None:
    linear = model.layers[0].mlp.fc1
    weight = 2 * linear.weight.detach()
    del linear.weight
    linear.weight = weight


def buffer_for_positions(model: ViTModel) -> None:
    positions = -model.embeddings.position_embeddings.detach()
    del model.embeddings.position_embeddings
    model.embeddings.register_buffer("position_embeddings", positions)


def new_hooks(model: ViTModel) -> None:
    mlp = model.layers[0].mlp
    mlp._forward_hooks = OrderedDict()  # how people clear all hooks
    mlp.register_forward_hook(lambda *a: 2 * a[2])


def transposed_data(model: ViTModel) -> None:
    weight = model.layers[0].attention.o_proj.weight
    weight.data = weight.data.t()


def own_config(model: ViTModel) -> None:
    model.layers[1].attention.config = copy.deepcopy(model.config)
    model.layers[1].attention.config._attn_implementation = "eager"


CHANGES = [
    other_heads, pruned_head, sliced_data, plain_weight, buffer_for_positions, new_hooks,
    transposed_data, own_config, lambda m: no_bias(m.layers[0].mlp.fc1), lambda m: no_bias(m.layers[1].mlp.fc2),
    lambda m: no_bias(m.layers[1].attention.q_proj), lambda m: no_bias(m.layers[1].attention.o_proj),
    lambda m: no_bias(m.layernorm), lambda m: no_bias(m.embeddings.patch_embeddings.projection),
    lambda m: [no_bias(getattr(m.layers[1].attention, f"{x}_proj")) for x in "qkv"],
    lambda m: setattr(m.layers[0].mlp, "fc1", nn.Linear(64, 96, bias=False)),
    lambda m: setattr(m.config, "hidden_act", "bogus"),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("called_before", [True, False])
def test_changes(change, called_before):
    stock, fast = twins(ViTModel)
    if called_before:
        assert_fast(fast, stock, PIXELS)
    for model in (stock, fast):
        torch.manual_seed(0)
        change(model)
        model.requires_grad_(False)
    with torch.no_grad():
        assert_same(fast(PIXELS), stock(PIXELS), 2e-5)


def test_plain_tensors_that_want_a_gradient():
    stock, fast = twins(ViTModel)
    for model in (stock, fast):
        plain_weight(model)
        model.layers[0].mlp.fc1.weight.requires_grad_(True)
    assert fast(PIXELS)[0].requires_grad
    assert "not a parameter" in reason(fast)


@pytest.mark.parametrize("cls", [ViTModel, ViTForImageClassification])
def test_inputs_that_require_gradients(cls):
    """A hook of transformers' own, for adapters and checkpointing, that does more than record."""
    stock, fast = twins(cls)
    assert_fast(fast, stock, PIXELS)
    for model in (stock, fast):
        model.enable_input_require_grads()
    assert_stock(fast, stock, "forward hooks", PIXELS)
    assert fast(PIXELS)[0].requires_grad


def test_an_encoder_with_a_config_of_its_own():
    stock, fast = twins(ViTForImageClassification)
    for model in (stock, fast):
        model.vit.config = copy.deepcopy(model.config)
        model.vit.config.output_hidden_states = True
    assert len(assert_fast(fast, stock, PIXELS).hidden_states) == 3
    for model in (stock, fast):
        model.vit.config.output_hidden_states = False
    assert assert_fast(fast, stock, PIXELS).hidden_states is None


@pytest.mark.parametrize("where", ["instance", "class"])
def test_positions_resized_by_another_method(where, monkeypatch):
    stock, fast = twins(ViTModel)
    larger = dict(pixel_values=images(2, 3, 48, 48), interpolate_pos_encoding=True)
    assert_fast(fast, stock, **larger)

    def nothing(self, embeddings, height, width):
        return torch.zeros_like(embeddings)

    if where == "class":
        monkeypatch.setattr(modeling_vit.ViTEmbeddings, "interpolate_pos_encoding", nothing)
    else:
        for model in (stock, fast):
            model.embeddings.interpolate_pos_encoding = types.MethodType(nothing, model.embeddings)
    with torch.no_grad():
        assert_stock(fast, stock, "interpolate_pos_encoding", **larger)


@pytest.mark.parametrize("cls", [ViTModel, nn.Linear])
def test_a_patch_that_looks_like_the_original(cls, monkeypatch):
    stock, fast = twins(ViTModel)
    assert_fast(fast, stock, PIXELS)
    original = cls.forward

    @functools.wraps(original)
    def patched(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        return 2 * out if isinstance(out, torch.Tensor) else type(out)(2 * out[0], out[1])

    monkeypatch.setattr(cls, "forward", patched)
    with torch.no_grad():
        assert_same(fast(PIXELS), stock(PIXELS))
    assert reason(fast)


def test_an_attention_function_in_the_place_of_another(monkeypatch):
    stock, fast = twins(ViTModel)
    assert_fast(fast, stock, PIXELS)
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]

    @functools.wraps(original)
    def doubled(*args, **kwargs):
        return 2 * original(*args, **kwargs)[0], None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", doubled)
    doubled.__module__ = "mine"
    with torch.no_grad():
        assert_stock(fast, stock, "not transformers' own", PIXELS)
    monkeypatch.undo()
    assert_fast(fast, stock, PIXELS)


def test_function_modes():
    class Doubled(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            return 2 * out if func is nn.functional.linear else out

    stock, fast = twins(ViTModel)
    with torch.no_grad(), Doubled():
        assert_stock(fast, stock, "TorchFunctionMode", PIXELS)
    with torch.device("cpu"):  # one, too, and harmless
        assert_fast(fast, stock, PIXELS)


@pytest.mark.parametrize("config, pixels", [
    (dict(image_size=(16, 64)), images(2, 3, 16, 64)),
    (dict(image_size=(32, 64)), images(2, 3, 32, 64)),
    (dict(patch_size=(8, 8)), PIXELS),
], ids=str)  # fmt: skip
def test_interpolation_that_transformers_does_its_own_way(config, pixels):
    stock, fast = twins(ViTModel, **config)
    assert_fast(fast, stock, pixels)
    results = []
    for model in (stock, fast):
        try:
            with torch.no_grad():
                results.append(model(pixels, interpolate_pos_encoding=True)[0])
        except (RuntimeError, TypeError) as error:
            results.append(str(error))
    assert type(results[0]) is type(results[1])
    assert str(results[0]) == str(results[1])


def test_conversions_that_swap():
    """torch.utils.swap_tensors refuses tensors that anybody holds a weak reference to."""
    stock, fast = twins(ViTModel)
    other = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    assert_fast(fast, stock, PIXELS)
    other(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        other.double()
        for model in (stock, fast):
            model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    with torch.no_grad():
        assert_same(fast(PIXELS), stock(PIXELS), 1e-12)


def test_conversion_frees_the_old_weights():
    """At once, not with the next call."""
    stock, fast = twins(ViTModel)
    outer = nn.ModuleList([fast])
    assert_fast(fast, stock, PIXELS)
    before = [StorageWeakRef(p.untyped_storage()) for p in fast.parameters()]
    outer.double()
    assert all(storage.expired() for storage in before)
    assert vit_fast.explain(outer)[0].nbytes == 0


def test_shared_memory():
    """Another process may write there, and no counter tells."""
    stock, fast = twins(ViTModel)
    assert_fast(fast, stock, PIXELS)
    fast.share_memory()
    with torch.no_grad():
        assert_stock(fast, stock, "shared memory", PIXELS)


def test_arguments_given_twice_or_too_many():
    stock, fast = twins(ViTModel)
    for call in (lambda m: m(PIXELS, pixel_values=PIXELS), lambda m: m(PIXELS, None, None, None, None)):  # fmt: skip
        messages = []
        for model in (stock, fast):
            with pytest.raises(TypeError) as caught:
                call(model)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_arrays_in_a_config():
    stock, fast = twins(ViTModel)
    for value in (torch.ones(3), torch.zeros(3)):
        fast.config.weights = value
        assert_fast(fast, stock, PIXELS)


def test_state_beside_a_model_is_never_copied():
    _, fast = twins(ViTModel)
    copied = copy.deepcopy(vars(fast))
    assert copied["_vit_fast"] is None
    vars(fast).update(copied)
    with torch.no_grad():
        fast(PIXELS)


def test_two_names_for_one_model():
    stock, fast = twins(ViTForImageClassification)
    vit_fast.restore(fast)
    holder = types.SimpleNamespace(a=fast.vit, b=fast, c=fast)
    vit_fast.accelerate(holder)
    assert [encoder.type for encoder in vit_fast.explain(holder)] == ["ViTForImageClassification"]
    assert type(fast.vit) is ViTModel
    assert_fast(fast, stock, PIXELS)


def test_explained_before_the_first_call():
    eager = vit_fast.accelerate(hf_model(ViTModel))
    (found,) = vit_fast.explain(eager)
    assert not found.fast
    assert "'eager'" in found.reason
    compiled = torch.compile(twins(ViTModel)[1], backend="eager")
    with torch.no_grad():
        compiled(PIXELS)
    assert "only in compiled graphs" in str(vit_fast.explain(compiled))
