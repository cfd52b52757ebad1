"""Graphs of a ViT, through a recorder in software: never another result than by ordinary launches, and a bounded cost."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models import NORM, SPEC, images, randomize
from recorder import SoftwareRecorder
from vit_fast import ViT, torch_ops
from vit_fast.graphs import LARGEST, Graphs, bucket

SIZES = [*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64]


@pytest.fixture
def vit() -> ViT:
    with torch.inference_mode(False):
        vit = randomize(ViT(SPEC, NORM, ops=torch_ops())).eval()
    vit.recorder = SoftwareRecorder
    return vit


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def recorder(vit: ViT) -> SoftwareRecorder:
    return vit._graphs._recorder


def by_launches(vit: ViT, pixels: Tensor) -> Tensor:
    return vit.encode(pixels, vit.ops)[0]


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-5)


def check(vit: ViT, pixels: Tensor, replayed: bool | None = None) -> None:
    """As by ordinary launches; and whether it came out of a graph."""
    before = 0 if vit._graphs is None else recorder(vit).replays
    assert close(vit(pixels), by_launches(vit, pixels))
    if replayed is not None:
        assert recorder(vit).replays - before == replayed


def test_buckets():
    """Every batch has the smallest size that holds it, and at most a fifth of that is padding."""
    for batch in range(1, LARGEST + 1):
        assert bucket(batch) == min(size for size in SIZES if size >= batch)
        assert 5 * (bucket(batch) - batch) <= bucket(batch)
    assert [bucket(batch) for batch in (-1, 0, 65, 1000)] == [0] * 4


def test_captured_once_then_replayed(vit):
    for i in range(4):
        check(vit, images(2, 3, 32, 32, seed=i), replayed=i > 0)
    assert recorder(vit).records == 1
    assert vit.graph_report() == Graphs(1, SoftwareRecorder.bytes_a_graph)


@pytest.mark.parametrize(
    "make",
    [
        lambda: images(2, 3, 32, 32, dtype=torch.uint8),
        lambda: images(2, 3, 40, 48),
        lambda: images(2, 3, 40, 48, dtype=torch.uint8),
        lambda: images(2, 32, 32, 3).permute(0, 3, 1, 2),
        lambda: images(4, 3, 40, 64)[::2, :, 3:35, ::2],
        lambda: images(1, 3, 32, 32).expand(2, -1, -1, -1),
    ],
    ids=["bytes", "another size", "bytes of another size", "channels last", "a crop", "expanded"],
)
def test_any_pixels(vit, make):
    for i in range(3):
        check(vit, make(), replayed=i > 0)


FEATURES = [
    dict(pooled=True),
    dict(tokens=False, logits=True),
    dict(tokens=False, hidden_states=True),
    dict(hidden_states=True, pooled=True, logits=True),
]


@pytest.mark.parametrize("asked", FEATURES, ids=str)
def test_features(vit, asked):
    for batch in (3, 9):
        pixels = images(batch, 3, 32, 32)
        vit.graphs = False
        expected = vit.features(pixels, **asked)
        vit.graphs = True
        for _ in range(3):
            found = vit.features(pixels, **asked)
            for name, value in vars(expected).items():
                if isinstance(value, tuple):
                    assert len(value) == SPEC.depth + 1
                    assert all(map(close, getattr(found, name), value))
                else:
                    assert value is None or close(getattr(found, name), value)
        assert recorder(vit).replays == 2


def test_the_kernels_interpreted(vit):
    """Through torch.ops.vit_fast, as they are recorded on a GPU."""
    pytest.importorskip("triton")
    from vit_fast import triton_ops

    if torch.cuda.is_available():
        pytest.skip("the kernels of this process are for the GPU: tests/test_graphs_gpu.py")
    vit.ops = triton_ops()
    for batch in (1, 9, 1):
        pixels = images(batch, 3, 16, 16, seed=batch)
        assert close(vit(pixels), vit.encode(pixels, torch_ops())[0])
    assert (recorder(vit).records, recorder(vit).replays) == (2, 1)
    ops = {str(step[0]) for step in recorder(vit).tapes[0].steps}
    assert {f"vit_fast.{op}.default" for op in ("linear", "attention", "layer_norm")} <= ops


def test_interleaved_shapes(vit):
    """Small, large, small, of several sizes and kinds of pixels, each from its own graph of one pool."""
    shapes = [(2, 32, 32), (16, 32, 32), (2, 40, 48), (5, 32, 32), (2, 32, 32), (1, 8, 8)]
    for round in range(3):
        for i, (batch, *size) in enumerate(shapes):
            for dtype in (torch.float32, torch.uint8):
                pixels = images(batch, 3, *size, seed=100 * round + i, dtype=dtype)
                check(vit, pixels, replayed=round > 0 or i == 4)
    assert recorder(vit).records == 10


def test_padding_reaches_no_valid_row(vit):
    """NaN in the rows beyond, left by a full batch before: small, large, small, each as it should be."""
    check(vit, images(9, 3, 32, 32))
    for seed, batch, poisoned in [
        (1, 9, False),
        (2, 10, True),
        (3, 9, False),
        (4, 10, False),
        (5, 9, True),
    ]:
        pixels = images(batch, 3, 32, 32, seed=seed)
        if poisoned:
            pixels[-1] = torch.nan
        y, expected = vit(pixels), by_launches(vit, pixels)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-5, equal_nan=True)
        assert y[: batch - poisoned].isfinite().all()
    assert (recorder(vit).records, recorder(vit).replays) == (1, 5)


def test_results_belong_to_the_caller(vit):
    """Not to the graph's buffers, nor to those of a padded batch."""
    pixels = [images(3, 3, 32, 32, seed=i) for i in range(4)]
    expected = [by_launches(vit, p) for p in pixels]
    found = [vit(p) for p in pixels]
    for y, e in zip(found, expected):
        assert close(y, e)
        y.fill_(0)
    assert close(vit(pixels[0]), expected[0])
    for _ in range(2):
        y = vit(images(9, 3, 32, 32))
        assert y.untyped_storage().nbytes() == y.nbytes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_captured_in_one_mode_replayed_in_another(vit, mode):
    vit.ops = replace(torch_ops(), differentiable=False)
    vit.requires_grad_(False)
    pixels = images(2, 3, 32, 32).clone()
    expected = by_launches(vit, pixels)
    vit(pixels)
    with torch.inference_mode(False), mode():
        pixels = images(2, 3, 32, 32)
        y = vit(pixels)
        assert close(y, expected)
        assert y.is_inference() == (mode is torch.inference_mode)
    assert recorder(vit).replays == 1


def test_a_wanted_gradient_is_not_lost(vit):
    vit(images(2, 3, 32, 32))
    with torch.inference_mode(False), torch.enable_grad():
        vit(images(2, 3, 32, 32)).sum().backward()
        assert vit.pos_embed.grad is not None
    assert recorder(vit).replays == 0


def test_more_than_a_bucket_holds(vit):
    for batch in (0, LARGEST + 1):
        for _ in range(2):
            y = vit(images(batch, 3, 8, 8))
            assert y.shape[0] == batch
    assert vit.graph_report().count == 0


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
        for i in range(4):
            with torch.no_grad():
                for _ in range(3):
                    check(vit, pixels)
            with torch.enable_grad():
                vit(pixels).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert recorder(vit).records == 1
    assert recorder(vit).replays > 4


def test_a_graph_holds_what_it_reads(vit):
    """Every piece of memory that it reads and has not made, also once nobody else holds it."""
    with torch.inference_mode(False), torch.no_grad():
        pixels = images(2, 3, 40, 48, dtype=torch.uint8)
        vit(pixels)
        (graph,) = vit._graphs._graphs.values()
        baked = vit._graphs._baked
        held = {s.data_ptr() for s in baked._storages}
        held |= {kept.result.untyped_storage().data_ptr() for kept in graph._reads}
        held.add(graph.recording.input.untyped_storage().data_ptr())
        read = recorder(vit).memory_read()
        assert len(read) > 20
        assert read <= held


def test_hooks_inside_run_at_every_call(vit):
    pixels, seen = images(9, 3, 32, 32), []
    for _ in range(2):
        vit(pixels)
    handle = vit.blocks[0].register_forward_hook(lambda m, args, y: seen.append(len(y)))
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
    assert len(seen) > 20
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


def test_the_flag(vit):
    vit.graphs = False
    vit(images(1, 3, 32, 32))
    assert vit._graphs is None
    vit.graphs = True
    for _ in range(2):
        check(vit, images(1, 3, 32, 32))
    assert vit.graph_report().count == 1
    vit.graphs = False
    vit(images(1, 3, 32, 32))
    assert vit._graphs is None and vit.graph_report().count == 0


def test_copies_have_none(vit):
    pixels = images(2, 3, 32, 32)
    for _ in range(2):
        vit(pixels)
    for other in (copy.deepcopy(vit), pickle.loads(pickle.dumps(vit)), copy.copy(vit)):
        assert other.graph_report().count == 0
        with torch.inference_mode(False), torch.no_grad():
            other.load_state_dict({k: 2 * v for k, v in other.state_dict().items()}, assign=True)
        for _ in range(3):
            check(other, pixels)
        for _ in range(3):
            check(vit, pixels)
        assert other._graphs is not vit._graphs


def test_settings_of_the_launches_count(vit):
    """TF32 or not, on a GPU."""
    pixels = images(2, 3, 32, 32)
    for setting, replayed in (("ieee", False), ("ieee", True), ("tf32", False), ("ieee", True)):
        if vit._graphs is not None:
            recorder(vit).baked = setting
        else:
            vit.recorder = type(
                "Recorder", (SoftwareRecorder,), {"settings": lambda self: self.baked or "ieee"}
            )
        check(vit, pixels, replayed=replayed)


def test_functional_call(vit):
    """Other parameters for one call, again and again: right, and not one capture a call."""
    pixels = images(2, 3, 32, 32)
    other = {k: 2 * v for k, v in vit.state_dict().items()}
    expected = [by_launches(vit, pixels), None]
    vit2 = copy.deepcopy(vit)
    vit2.load_state_dict(other)
    expected[1] = by_launches(vit2, pixels)
    for i in range(40):
        assert close(vit(pixels), expected[0])
        assert close(torch.func.functional_call(vit, other, (pixels,)), expected[1])
    assert recorder(vit).records < 10
