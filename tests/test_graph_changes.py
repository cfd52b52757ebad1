"""A graph is never behind its model: weights, modules, settings and hooks that change between replays."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from models import NORM, SPEC, images, randomize
from recorder import SoftwareRecorder, by_launches, check, close, recorded_vit, recorder
from vit_fast import ViT, torch_ops
from vit_fast.weights import SIZES


@pytest.fixture
def vit() -> ViT:
    return recorded_vit()


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


# each: what it does to the model, and whether the graphs outlive it
CHANGES = {
    "a weight written": (lambda v: v.blocks[1].mlp.fc2.weight.mul_(2), True),
    "a weight written that others are derived from": (lambda v: v.pos_embed.mul_(2), True),
    "the class token written": (lambda v: v.cls_token.mul_(2), True),
    "a patch weight written": (lambda v: v.patch_embed.proj.weight.mul_(2), True),
    "a weight replaced": (
        lambda v: setattr(
            v.blocks[0].attn.qkv, "weight", nn.Parameter(2 * v.blocks[0].attn.qkv.weight)
        ),
        False,
    ),
    "a bias replaced": (lambda v: setattr(v.norm, "bias", nn.Parameter(v.norm.bias + 1)), False),
    "other memory": (
        lambda v: setattr(v.blocks[0].mlp.fc1.weight, "data", 2 * v.blocks[0].mlp.fc1.weight.data),
        False,
    ),
    "other memory of a bias": (lambda v: setattr(v.norm.bias, "data", v.norm.bias.data + 1), False),
    "another layout": (
        lambda v: setattr(
            v.blocks[0].attn.proj.weight, "data", v.blocks[0].attn.proj.weight.data.t()
        ),
        False,
    ),
    "a class token replaced": (
        lambda v: setattr(v, "cls_token", nn.Parameter(2 * v.cls_token)),
        False,
    ),
    "a block replaced": (lambda v: v.blocks.__setitem__(0, copy.deepcopy(v.blocks[1])), False),
    "a block fewer": (lambda v: v.blocks[1:] and v.blocks.pop(-1), False),
    "an eps": (lambda v: setattr(v.norm, "eps", 0.5), False),
    "an activation": (lambda v: setattr(v.blocks[1].mlp, "activation", "silu"), False),
    "a state dict": (lambda v: v.load_state_dict(randomize(ViT(SPEC), 3).state_dict()), True),
    "a state dict assigned": (
        lambda v: v.load_state_dict(randomize(ViT(SPEC), 3).state_dict(), assign=True),
        False,
    ),
    "another normalization": (
        lambda v: setattr(v, "normalization", replace(NORM, mean=(0.1, 0.2, 0.3))),
        False,
    ),
    "another table": (lambda v: setattr(v, "ops", replace(torch_ops(), linear=doubled)), False),
    "there and back in dtype": (lambda v: v.bfloat16().float(), False),
    "written through .data, and refreshed": (
        lambda v: (v.pos_embed.data.mul_(2), v.refresh()),
        False,
    ),
}


def doubled(*args, **kwargs):
    return 2 * torch_ops().linear(*args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("change, stays", CHANGES.values(), ids=CHANGES)
def test_no_stale_result(vit, change, stays, dtype):
    pixels = images(3, 3, 40, 48, dtype=dtype)
    with torch.inference_mode(False), torch.no_grad():
        for _ in range(2):
            check(vit, pixels)
        for i in range(3):
            before = by_launches(vit, pixels)
            change(vit)
            expected = copy.deepcopy(vit).encode(pixels, vit.ops)[0]
            assert i or dtype != torch.uint8 or not close(expected, before)
            replays = recorder(vit).replays
            for _ in range(10):
                assert close(vit(pixels), expected)
            assert recorder(vit).replays > replays
    assert (recorder(vit).records == 1) == stays


def test_an_optimizer_step_between(vit):
    """A fused one is not counted by PyTorch: counted here."""
    pixels = images(2, 3, 40, 48)
    with torch.inference_mode(False):
        optimizer = torch.optim.AdamW(vit.parameters(), lr=0.1, fused=True)
        for _ in range(4):
            with torch.no_grad():
                for _ in range(3):
                    check(vit, pixels)
            with torch.enable_grad():
                vit(pixels).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert recorder(vit).records == 1
    assert recorder(vit).replays > 4


def test_a_conversion_drops_them_first(vit):
    """Not at the next call: the old weights, which they hold, are freed."""
    vit(images(2, 3, 32, 32))
    nn.ModuleList([vit]).double()
    assert vit.graph_report().count == recorder(vit).pool == 0


def test_derived_weights_that_come_to_lie_elsewhere(vit):
    """Pushed out by other sizes, so not made anew in place: the graph that read them is made anew, too."""
    pixels = images(2, 3, 40, 48)
    with torch.inference_mode(False), torch.no_grad():
        for _ in range(2):
            check(vit, pixels)
        for width in range(8, 8 * (SIZES + 5), 8):
            vit(images(1, 3, 8, width))
        check(vit, pixels, replayed=True)
        records = recorder(vit).records
        vit.pos_embed.mul_(2)
        check(vit, pixels, replayed=True)  # thrown away
        check(vit, pixels, replayed=True)
    assert recorder(vit).records == records + 1


def test_a_graph_holds_what_it_reads(vit):
    """Every piece of memory that it reads and has not made, also once nobody else holds it."""
    with torch.inference_mode(False), torch.no_grad():
        pixels = images(2, 3, 40, 48, dtype=torch.uint8)
        vit(pixels)
        (graph,) = vit._graphs._graphs.values()
        baked = vit._graphs._baked
        held = {s.data_ptr() for s in baked._storages}
        held |= {kept.result.untyped_storage().data_ptr() for kept in graph._reads}
        held |= {t.untyped_storage().data_ptr() for t in graph.recording.inputs}
        read = recorder(vit).memory_read()
        assert len(read) > 20
        assert read <= held


def test_hooks_inside_run_at_every_call(vit):
    pixels, seen = images(9, 3, 32, 32), []
    for _ in range(2):
        vit(pixels)
    handle = vit.blocks[0].register_forward_hook(lambda m, args, y: seen.append(len(y[0])))
    for _ in range(3):
        check(vit, pixels)
    assert seen == [9] * 6  # not the graph's batch, and by_launches runs them too
    handle.remove()
    for _ in range(4):
        check(vit, pixels)
    assert len(seen) == 6
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, y: seen.append(0))
    vit(pixels)
    handle.remove()
    assert len(seen) > 15
    replays = recorder(vit).replays
    vit.register_forward_hook(lambda m, args, y: 2 * y)
    expected = 2 * by_launches(vit, pixels)
    for _ in range(4):
        assert close(vit(pixels), expected)
    assert recorder(vit).replays > replays


def test_modules_and_methods_of_others(vit):
    """What they do beside their result is not in a graph."""

    class Mine(type(vit.blocks[0])):
        calls = 0

        def forward(self, *args, **kwargs):
            Mine.calls += 1
            return super().forward(*args, **kwargs)

    mine = Mine(SPEC)
    mine.load_state_dict(vit.blocks[0].state_dict())
    vit.blocks[0] = mine
    for _ in range(3):
        vit(images(1, 3, 32, 32))
    assert Mine.calls == 3

    class Derived(ViT):
        pass

    derived = Derived(SPEC, ops=torch_ops())
    derived.recorder = SoftwareRecorder
    for _ in range(3):
        derived(images(1, 3, 32, 32))
    assert derived.graph_report().count == 0


def test_functional_call(vit):
    """Other parameters for one call, again and again: right, and not one capture a call."""
    pixels = images(2, 3, 32, 32)
    other = {k: 2 * v for k, v in vit.state_dict().items()}
    twice = copy.deepcopy(vit)
    twice.load_state_dict(other)
    expected = [by_launches(v, pixels) for v in (vit, twice)]
    for _ in range(40):
        assert close(vit(pixels), expected[0])
        assert close(torch.func.functional_call(vit, other, (pixels,)), expected[1])
    assert recorder(vit).records < 10


def test_a_fused_step_during_a_capture(vit):
    """By another thread, behind what the graph has read."""
    steps = []

    class Stepped(SoftwareRecorder):
        def record(self, *args):
            recording = super().record(*args)
            if not steps:
                steps.append(optimizer.step())
            return recording

    vit.recorder = Stepped
    with torch.inference_mode(False):
        optimizer = torch.optim.AdamW([vit.cls_token, vit.pos_embed], lr=0.5, fused=True)
        for p in (vit.cls_token, vit.pos_embed):
            p.grad = torch.ones_like(p)
        with torch.no_grad():
            vit(images(2, 3, 40, 48))
            for _ in range(4):
                check(vit, images(2, 3, 40, 48))
    assert steps and recorder(vit).replays > 1


def test_a_refresh_while_another_thread_calls(vit, monkeypatch):
    """What that one captures in between is not of what was derived before."""
    pixels = images(2, 3, 40, 48)
    vit(pixels)
    vit.pos_embed.data.mul_(2)
    release = vit.release_graphs

    def called_in_between():
        release()
        for _ in range(3):
            vit(pixels)

    monkeypatch.setattr(vit, "release_graphs", called_in_between)
    vit.refresh()
    for _ in range(3):
        check(vit, pixels)
