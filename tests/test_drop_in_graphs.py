"""Accelerated models replay graphs: never behind their weights, hooks, settings; through a recorder in software."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from transformers import ViTForImageClassification, ViTModel

import vit_fast
from models import hf_model, images
from recorder import SoftwareRecorder, recorded_vit
from test_drop_in_changes import WRITES
from twins import PIXELS, assert_fast, assert_same, assert_stock, reason, twins
from vit_fast.state import state_of

CLASSES = [ViTModel, ViTForImageClassification]


def recorded(fast: nn.Module, **options) -> nn.Module:
    """On PyTorch's operations, which the software recorder can record."""
    vit_fast.accelerate(fast, cpu="plain", **options)
    state_of(fast).forget()
    state_of(fast).recorder = SoftwareRecorder
    return fast


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.__name__)
def pair(request):
    stock, fast = twins(request.param)
    return stock, recorded(fast)


def engine_of(fast: nn.Module):
    return state_of(fast).bound.engine


def replays(fast: nn.Module) -> int:
    return engine_of(fast)._graphs._recorder.replays


def assert_replayed(fast: nn.Module, stock: nn.Module, *args, calls: int = 3, **kwargs) -> None:
    """Right in each call, and the last one came out of a graph."""
    if state_of(fast).bound is not None and engine_of(fast) is not None:
        engine_of(fast).capture_now()
    for _ in range(calls):
        engine = state_of(fast).bound and engine_of(fast)
        before = replays(fast) if engine and engine._graphs and engine._graphs._recorder else 0
        assert_fast(fast, stock, *args, **kwargs)
    assert replays(fast) == before + 1


@pytest.mark.parametrize(
    "form",
    [
        {},
        dict(output_hidden_states=True),
        dict(return_dict=False),
        dict(interpolate_pos_encoding=True),
    ],
    ids=str,
)
def test_every_form(pair, form):
    stock, fast = pair
    size = (40, 48) if "interpolate_pos_encoding" in form else (32, 32)
    for batch in (2, 9, 2):
        assert_replayed(fast, stock, images(batch, 3, *size, seed=batch), **form)
    (found,) = vit_fast.explain(fast)
    assert (found.graphs, found.graph_nbytes, found.no_graph) == (2, 2000, ())
    assert "CUDA graphs: 2, 0.0 MB" in str(found)


def test_pixels_of_another_dtype():
    """Converted into the graph's input, as transformers converts them."""
    stock, fast = twins(ViTModel, torch.bfloat16)
    recorded(fast)
    for pixels in (PIXELS, PIXELS.double(), PIXELS.bfloat16(), (9 * PIXELS).to(torch.uint8)):
        assert_fast(fast, stock, pixels)
    assert engine_of(fast).graph_report().count == 1
    assert replays(fast) == 3


@pytest.mark.parametrize("write", WRITES, ids=lambda w: w.__name__)
def test_writes_to_any_parameter(pair, write):
    stock, fast = pair
    assert_replayed(fast, stock, PIXELS)
    for name, _ in stock.named_parameters():
        for model in pair:
            write(model.get_parameter(name))
        for _ in range(2):
            assert_fast(fast, stock, PIXELS)
    assert_replayed(fast, stock, PIXELS, calls=4)
    if write.__name__ != "by_data":
        assert engine_of(fast)._graphs._recorder.records == 1


def test_reassigned_parameters(pair):
    stock, fast = pair
    for name, p in list(stock.named_parameters())[::3]:
        owner, _, leaf = name.rpartition(".")
        for model in pair:
            new = nn.Parameter(1.5 * p.detach(), requires_grad=False)
            setattr(model.get_submodule(owner), leaf, new)
        assert_replayed(
            fast, stock, PIXELS, calls=2 if name.startswith(("pooler", "class")) else 70
        )


CHANGES = {
    "loaded": lambda m: m.load_state_dict(hf_model(ViTModel, seed=7).state_dict()),
    "assigned": lambda m: (
        m.load_state_dict(hf_model(ViTModel, seed=7).state_dict(), assign=True).unexpected_keys
        or m.requires_grad_(False)
    ),
    "converted and back": lambda m: m.bfloat16().float(),
    "another dtype": lambda m: m.double(),
    "a layer fewer": lambda m: setattr(m, "layers", m.layers[:1]),
    "a layer twice": lambda m: m.layers.append(m.layers[0]),
    "an eps": lambda m: [
        setattr(n, "eps", 0.5) for n in m.modules() if isinstance(n, nn.LayerNorm)
    ],
    "training and back": lambda m: m.train().eval(),
    "a new parameter over the same memory, written": lambda m: (
        setattr(
            m.layers[0].mlp.fc1, "weight", nn.Parameter(m.layers[0].mlp.fc1.weight.data, False)
        ),
        m.layers[0].mlp.fc1.weight.data.mul_(2),
    ),
    "another head": lambda m: setattr(m, "pooler", None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_stale_result(change):
    stock, fast = twins(ViTModel)
    recorded(fast)
    assert_replayed(fast, stock, PIXELS)
    for model in (stock, fast):
        change(model)
    pixels = PIXELS.to(stock.dtype)
    with torch.no_grad():
        for _ in range(6):
            assert_same(fast(pixels), stock(pixels), 2e-5)
        assert reason(fast) == ""
        before = replays(fast)
        fast(pixels)
        assert replays(fast) == before + 1


def test_graphs_outlive_training_mode(pair):
    """As an evaluation between epochs switches it."""
    stock, fast = pair
    assert_replayed(fast, stock, PIXELS)
    graphs = engine_of(fast)._graphs
    for model in pair:
        model.train().eval()
    assert_replayed(fast, stock, PIXELS, calls=1)
    assert engine_of(fast)._graphs is graphs and graphs._recorder.records == 1


def test_writes_through_data_need_a_refresh(pair):
    """The new engine captures anew, the graphs of the old one are gone."""
    stock, fast = pair
    assert_replayed(fast, stock, PIXELS)
    for model in pair:
        (model if isinstance(model, ViTModel) else model.vit).layers[
            1
        ].attention.v_proj.weight.data.mul_(2)
    old = engine_of(fast)
    vit_fast.refresh(fast)
    assert old.graph_report().count == 0
    assert_replayed(fast, stock, PIXELS)


def test_what_is_not_answered_by_the_engine(pair):
    """A graph that is there is not asked."""
    stock, fast = pair
    assert_replayed(fast, stock, PIXELS)
    engine, before = engine_of(fast), replays(fast)
    inner = (m if isinstance(m, ViTModel) else m.vit for m in pair)
    handles = [m.layers[0].register_forward_hook(lambda m, args, y: 2 * y) for m in inner]
    with torch.no_grad():
        assert_stock(fast, stock, "hook", PIXELS)
    for handle in handles:
        handle.remove()
    for model in pair:
        model.requires_grad_(True)
    assert_stock(fast, stock, "a gradient is wanted", PIXELS)
    with torch.no_grad(), torch.autocast("cpu"):
        assert_stock(fast, stock, "autocast", PIXELS)
    assert engine._graphs._recorder.replays == before
    assert_replayed(fast, stock, PIXELS)


def test_the_flag(pair):
    stock, fast = pair
    assert_replayed(fast, stock, PIXELS)
    old = engine_of(fast)
    recorded(fast, graphs=False)
    assert old.graph_report().count == 0
    for _ in range(2):
        assert_fast(fast, stock, PIXELS)
    assert vit_fast.explain(fast)[0].graphs == 0 and engine_of(fast)._graphs is None
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), copy.copy(fast)):
        assert state_of(copied).graphs is False
    recorded(fast)
    assert_replayed(fast, stock, PIXELS)
    state = state_of(fast)
    vit_fast.accelerate(fast, cpu="plain")
    assert state_of(fast) is state  # nothing to change


def test_copies_have_none_and_restored_ones_gave_them_back(pair):
    stock, fast = pair
    assert_replayed(fast, stock, PIXELS)
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), copy.copy(fast)):
        assert vit_fast.explain(copied)[0].graphs == 0
        recorded(copied)
        assert_replayed(copied, stock, PIXELS)
    assert_replayed(fast, stock, PIXELS)
    for give_back in (lambda: fast.double().float(), lambda: vit_fast.restore(fast)):
        engine = engine_of(fast)
        assert engine.graph_report().count == 1
        give_back()
        assert engine.graph_report().count == 0
        if state := vars(fast).get("_vit_fast"):
            assert state.bound is None
            assert_replayed(fast, stock, PIXELS)


def test_a_capture_that_fails(pair):
    stock, fast = pair
    assert_replayed(fast, stock, PIXELS)
    engine_of(fast)._graphs._recorder.fail += 2 * [torch.OutOfMemoryError("CUDA out of memory")]
    with pytest.warns(UserWarning, match="out of GPU memory at capture"):
        assert_fast(fast, stock, images(9, 3, 32, 32))
    (found,) = vit_fast.explain(fast)
    assert found.no_graph == ("batch 10 of 32 x 32, torch.float32: out of GPU memory at capture",)
    assert "launched without a CUDA graph: batch 10 of 32 x 32" in str(found)
    assert_fast(fast, stock, images(9, 3, 32, 32))
    assert_replayed(fast, stock, PIXELS, calls=5)


def test_warmup(pair):
    stock, fast = pair
    assert vit_fast.warmup(fast, iter([(2, 3, 32, 32), (9, 3, 32, 32)])) is fast
    assert vit_fast.explain(fast)[0].graphs == 2
    for n, batch in enumerate((10, 2), start=1):
        assert_fast(fast, stock, images(batch, 3, 32, 32))
        assert replays(fast) == n
    form = dict(interpolate_pos_encoding=True, output_hidden_states=True)
    vit_fast.warmup(nn.ModuleList([fast]), [(1, 3, 40, 40)], torch.float64, **form)
    assert_fast(fast, stock, images(1, 3, 40, 40), **form)
    assert replays(fast) == 3
    with pytest.raises(ValueError, match=r"a shape must be \(B, C, H, W\)"):
        vit_fast.warmup(fast, [(3, 32, 32)])
    for model in pair:
        model.set_attn_implementation("eager")
    with pytest.warns(
        UserWarning, match="warmup: the model runs transformers' own forward: attn_impl"
    ):
        vit_fast.warmup(fast, [(1, 3, 32, 32)])


def test_a_refresh_while_another_thread_binds(pair, monkeypatch):
    """It does not bring back what the refresh has dropped."""
    stock, fast = pair
    assert_replayed(fast, stock, PIXELS)
    state, threads = state_of(fast), []
    old, bind = engine_of(fast), state._bind

    def slow(model):
        bound = bind(model)
        threads.append(threading.Thread(target=vit_fast.refresh, args=(model,)))
        threads[0].start()
        threads[0].join(0.3)
        return bound

    monkeypatch.setattr(state, "_bind", slow)
    for model in pair:
        model.train().eval()
        model.config = copy.deepcopy(model.config)
    assert_fast(fast, stock, PIXELS)
    threads[0].join()
    monkeypatch.undo()
    assert state.bound is None or engine_of(fast) is not old
    assert_fast(fast, stock, PIXELS)


def test_warmup_of_other_things():
    vit = recorded_vit()
    vit_fast.warmup(nn.ModuleList([vit]), [(1, 3, 32, 32)], hidden_states=True)
    assert vit.graph_report().count == 1
    for nothing in (twins(ViTModel)[0], nn.Linear(1, 1), object()):
        with pytest.warns(UserWarning, match="warmup found nothing accelerated in a"):
            vit_fast.warmup(nothing, [(1, 3, 32, 32)])
