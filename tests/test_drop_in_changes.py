"""An accelerated model is never behind its weights: every way of changing them is seen by the next call."""

import copy

import pytest
import torch
from torch import nn
from transformers import ViTForImageClassification, ViTModel

import vit_fast
from models import hf_model
from twins import PIXELS, assert_fast, assert_same, reason, twins
from vit_fast.state import state_of

CLASSES = [ViTModel, ViTForImageClassification]


@pytest.fixture(params=["auto", "plain"])
def pair(request):
    stock, fast = twins(ViTModel)
    return stock, vit_fast.accelerate(fast, cpu=request.param)


@torch.no_grad()
def in_place(p: nn.Parameter) -> None:
    p.mul_(1.5)


def by_copy(p: nn.Parameter) -> None:
    with torch.no_grad():
        p.copy_(1.5 * p)


def by_data(p: nn.Parameter) -> None:
    p.data = 1.5 * p.data


def in_inference_mode(p: nn.Parameter) -> None:
    with torch.inference_mode():
        p.mul_(1.5)


def of_a_view(p: nn.Parameter) -> None:
    with torch.no_grad():
        p[:1].mul_(3)


WRITES = [in_place, by_copy, by_data, in_inference_mode, of_a_view]


@pytest.mark.parametrize("write", WRITES, ids=lambda w: w.__name__)
def test_writes_to_any_parameter(pair, write):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    for name, _ in stock.named_parameters():
        with torch.no_grad():
            before = fast(PIXELS)
        for model in pair:
            write(model.get_parameter(name))
        after = assert_fast(fast, stock, PIXELS)
        if (
            name != "layers.0.attention.k_proj.bias"
        ):  # the softmax does not see a constant added to every score
            same = torch.equal(after.last_hidden_state, before.last_hidden_state)
            assert same == name.startswith("pooler") or "k_proj.bias" in name, name


@pytest.mark.parametrize("cls", CLASSES)
def test_reassigned_parameters(cls):
    stock, fast = twins(cls)
    assert_fast(fast, stock, PIXELS)
    for name, p in list(stock.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        new = 1.5 * p.detach()
        for model in (stock, fast):
            setattr(
                model.get_submodule(owner), leaf, nn.Parameter(new.clone(), requires_grad=False)
            )
        assert_fast(fast, stock, PIXELS)


def test_a_new_parameter_over_the_same_memory(pair):
    """Its version counter is its own: writes through it would not be seen through the old one."""
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    for model in pair:
        fc1 = model.layers[0].mlp.fc1
        fc1.weight = nn.Parameter(fc1.weight.data, requires_grad=False)
    assert_fast(fast, stock, PIXELS)
    for model in pair:
        in_place(model.layers[0].mlp.fc1.weight)
    assert_fast(fast, stock, PIXELS)


def test_writes_through_data_need_a_refresh(pair):
    """Documented: PyTorch counts no version there."""
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    for model in pair:
        model.layers[1].attention.v_proj.weight.data.mul_(2)
    assert vit_fast.refresh(fast) is fast
    assert_fast(fast, stock, PIXELS)


def test_parameters_made_in_inference_mode():
    with torch.inference_mode():
        stock = hf_model(ViTModel).requires_grad_(False)
        stock.set_attn_implementation("sdpa")
        fast = vit_fast.accelerate(copy.deepcopy(stock))
        assert_same(fast(PIXELS), stock(PIXELS), 2e-5)
        for model in (stock, fast):
            model.layers[0].mlp.fc1.weight.mul_(2)
        vit_fast.refresh(fast)
        assert_same(fast(PIXELS), stock(PIXELS), 2e-5)
    assert reason(fast) == ""


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("cls", CLASSES)
def test_load_state_dict(cls, assign):
    stock, fast = twins(cls)
    assert_fast(fast, stock, PIXELS)
    other = hf_model(cls, seed=7).state_dict()
    for model in (stock, fast):
        model.load_state_dict(copy.deepcopy(other), assign=assign)
        model.requires_grad_(False)
    assert_fast(fast, stock, PIXELS)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    ],
    ids=["SGD", "AdamW", "foreach", "fused"],
)
@pytest.mark.parametrize("cls", CLASSES)
def test_optimizer_steps(cls, make):
    """Training goes through transformers, evaluation between the steps through the engine, on the newest weights."""
    for model in (pair := twins(cls)):
        model.requires_grad_(True)
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    optimizers = [make(model.parameters()) for model in pair]
    for _ in range(3):
        for model, optimizer in zip(pair, optimizers):
            model.train()
            model(PIXELS)[0].square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            model.eval()
        assert_fast(fast, stock, PIXELS)
    for ours, theirs in zip(fast.parameters(), stock.parameters(), strict=True):
        assert torch.equal(ours, theirs)


DTYPES = [torch.bfloat16, torch.float16, torch.float64, torch.float32]


@pytest.mark.parametrize("cls", CLASSES)
def test_converted_after_calls(cls):
    """The same parameter objects get other memory, of another dtype, sometimes at an old address."""
    stock, fast = twins(cls)
    for dtype in [torch.float32, *DTYPES, torch.bfloat16]:
        for model in (stock, fast):
            model.to(dtype)
        with torch.no_grad():
            pixels = PIXELS.to(dtype)
            atol = {
                torch.float64: 1e-12,
                torch.float32: 2e-5,
                torch.float16: 2e-2,
                torch.bfloat16: 0.125,
            }
            assert_same(fast(pixels), stock(pixels), atol[dtype])
        assert reason(fast) == ""
        assert state_of(fast).bound.engine.dtype == dtype


def test_there_and_back_between_calls(pair):
    """Rounded to bf16: same objects, same dtype, other values."""
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    for _ in range(3):
        for model in pair:
            model.bfloat16().float()
        assert_fast(fast, stock, PIXELS)
        for model in pair:
            in_place(model.layers[0].mlp.fc1.weight)


def test_converted_before():
    stock = hf_model(ViTModel, torch.bfloat16).requires_grad_(False)
    stock.set_attn_implementation("sdpa")
    fast = vit_fast.accelerate(copy.deepcopy(stock))
    assert_fast(fast, stock, PIXELS.bfloat16())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_moved_to_a_gpu_and_back(pair):
    stock, fast = pair
    for device in ("cpu", "cuda", "cpu", "cuda"):
        for model in pair:
            model.to(device)
        assert_fast(fast, stock, PIXELS.to(device))
    assert state_of(fast).bound.ops.name == "triton"


def test_moved_to_the_meta_device(pair):
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    for model in pair:
        model.to("meta")
    pixels = PIXELS.to("meta")
    assert fast(pixels)[0].device == stock(pixels)[0].device
    assert "meta device" in reason(fast)
    assert "meta device" in vit_fast.explain(fast)[0].reason


def test_fewer_layers(pair):
    """As users do who want the features of a block in the middle; the config still says 2."""
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    for model in pair:
        model.layers = model.layers[:1]
    assert_fast(fast, stock, PIXELS, output_hidden_states=True)
    for model in pair:
        model.layers.append(copy.deepcopy(model.layers[0]))
        model.layers.append(model.layers[0])  # the same layer twice
    assert_fast(fast, stock, PIXELS, output_hidden_states=True)


def test_another_head():
    """Whatever stands for pooler and classifier is called, hooks and all."""
    stock, fast = twins(ViTForImageClassification)
    head = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False)
    for model in (stock, fast):
        model.classifier = head
    assert_fast(fast, stock, PIXELS)
    head.register_forward_hook(lambda m, args, out: 2 * out)
    assert_fast(fast, stock, PIXELS)
    stock, fast = twins(ViTModel)
    for model in (stock, fast):
        model.pooler = None
    assert_fast(fast, stock, PIXELS)


def test_hooks_on_the_model_itself(pair):
    """They are called around the fast path as around any forward, also with the arguments by name."""
    stock, fast = pair
    seen = []
    for model in pair:
        model.register_forward_pre_hook(
            lambda m, a, k: (a, {**k, "pixel_values": -k["pixel_values"]}), with_kwargs=True
        )
        model.register_forward_hook(lambda m, a, out: seen.append(type(out).__name__))
    assert_fast(fast, stock, pixel_values=PIXELS)
    assert seen == ["BaseModelOutputWithPooling"] * 2


def test_bytes_beside_the_weights():
    """Packed or joined copies are counted, made once, and replaced, not added to, when a weight changes."""
    stock, fast = twins(ViTModel)
    vit_fast.accelerate(fast, cpu="plain")
    assert vit_fast.explain(fast)[0].nbytes == 0
    assert_fast(fast, stock, PIXELS)
    held = vit_fast.explain(fast)[0].nbytes
    qkv = sum(
        p.nbytes
        for n, p in fast.named_parameters()
        if n.split(".")[-2] in ("q_proj", "k_proj", "v_proj")
    )
    assert held == qkv + fast.embeddings.cls_token.nbytes
    for _ in range(3):
        with torch.no_grad():
            for p in fast.parameters():
                p.mul_(1.01)
            fast(PIXELS)
        assert vit_fast.explain(fast)[0].nbytes == held
    vit_fast.refresh(fast)
    assert vit_fast.explain(fast)[0].nbytes == 0
    vit_fast.accelerate(fast)  # "auto": other copies, these ones gone
    with torch.no_grad():
        fast(PIXELS)
        first = vit_fast.explain(fast)[0].nbytes
        fast(PIXELS)
    assert vit_fast.explain(fast)[0].nbytes == first
