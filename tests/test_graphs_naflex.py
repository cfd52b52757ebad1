"""Graphs of Patches, images of several sizes in one batch: through a recorder in software, as by ordinary launches."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models import NAFLEX, images, patches
from recorder import SoftwareRecorder, by_launches, check, close, recorded_vit, recorder
from vit_fast import ViT, torch_ops
from vit_fast.graphs import Graphs
from vit_fast.pixels import Patches

# the native grid, a full one of another form, and some that leave padding
NATIVE, WIDE, TALL, SMALL, ONE = (4, 4), (2, 8), (5, 3), (2, 3), (1, 1)


@pytest.fixture
def vit() -> ViT:
    return recorded_vit(NAFLEX)


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


# each with another graph than the one before it; the second of a graph has other grids than the first
CALLS = [
    ([NATIVE, WIDE], 16),
    ([NATIVE, SMALL], 16),
    ([WIDE, WIDE], 16),
    ([TALL, ONE], 16),
    ([SMALL, ONE], 6),
    ([NATIVE], 16),
    ([ONE, SMALL], 6),
    ([TALL], 16),
    ([NATIVE] * 8 + [SMALL], 16),
    ([NATIVE] * 9, 16),
    ([SMALL] * 9 + [TALL], 16),
    ([WIDE, NATIVE] * 5, 16),
    ([WIDE], 17),
    ([SMALL], 16),
    ([SMALL], 17),
]
GRAPHS = 8  # of which batch 2, N 16 and batch 10, N 16 each with a mask and without


def test_in_any_order(vit):
    """Small, large, of several lengths and grids, with a mask and without, each from its own graph of one pool."""
    for round, calls in enumerate([CALLS, CALLS[::-1], CALLS[::2] + CALLS[1::2]]):
        for i, (grids, length) in enumerate(calls):
            replayed = True if round else None
            check(vit, patches(vit, grids, length, seed=100 * round + i), replayed)
    assert (recorder(vit).records, recorder(vit).replays) == (GRAPHS, 3 * len(CALLS) - GRAPHS)
    assert vit.graph_report() == Graphs(GRAPHS, GRAPHS * SoftwareRecorder.bytes_a_graph)


ASKED = [
    dict(),
    dict(pooled=True),
    dict(tokens=False, pooled=True),
    dict(tokens=False, hidden_states=True),
    dict(hidden_states=True, pooled=True),
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_features(vit, asked):
    for grids in ([NATIVE, SMALL, TALL], [NATIVE, WIDE], [WIDE] * 8 + [SMALL]):
        for seed in range(3):
            given = patches(vit, grids, 16, seed=seed)
            vit.graphs = False
            expected = vit.features(given, **asked)
            vit.graphs = True
            for _ in range(3):
                found = vit.features(given, **asked)
                for name, value in vars(expected).items():
                    if isinstance(value, tuple):
                        assert len(value) == NAFLEX.depth + 1
                        assert all(map(close, getattr(found, name), value))
                    else:
                        assert value is None or close(getattr(found, name), value)
            assert recorder(vit).replays == 2


def test_the_same_vit_takes_images(vit):
    """A graph for them beside those for Patches: of one and the same pass, bit for bit as many tokens."""
    for seed in range(3):
        check(vit, images(2, 3, 32, 32, seed=seed), replayed=seed > 0)
        check(vit, patches(vit, [NATIVE, SMALL], 16, seed), replayed=seed > 0)
        check(vit, images(2, 3, 16, 24, dtype=torch.uint8, seed=seed), replayed=seed > 0)
    assert recorder(vit).records == 3


def test_the_kernels_interpreted(vit):
    """Through torch.ops.vit_fast, as they are recorded on a GPU."""
    pytest.importorskip("triton")
    from vit_fast import triton_ops

    if torch.cuda.is_available():
        pytest.skip("the kernels of this process are for the GPU: tests/test_graphs_naflex_gpu.py")
    vit.ops = triton_ops()
    for grids in ([SMALL, ONE], [SMALL, SMALL], [ONE, (3, 2)]):
        given = patches(vit, grids, 6, seed=len(grids))
        assert close(vit.features(given, pooled=True).tokens, vit.encode(given, torch_ops())[0])
    assert (recorder(vit).records, recorder(vit).replays) == (2, 1)
    ops = {str(step[0]) for step in recorder(vit).tapes[0].steps}
    assert {f"vit_fast.{op}.default" for op in ("linear", "attention", "layer_norm")} <= ops


def outputs(vit: ViT) -> list[Tensor]:
    """What all graphs have computed, in the rows of padding too."""
    return [y for graph in vit._graphs._graphs.values() for y in graph.recording.outputs]


def test_padding_is_finite_and_reaches_no_valid_row(vit):
    """At the first replay, and whatever lay there before: NaN, masks in which nothing counts, an earlier batch."""
    nine, ten, full = [TALL] * 8 + [SMALL], [SMALL] * 9 + [ONE], [NATIVE] * 10
    for seed, (grids, poisoned) in enumerate(
        [(nine, 0), (nine, 0), (ten, 1), (nine, 0), (full, 1), (full[:9], 0), (nine, 0), (ten, 0)]
    ):
        given = patches(vit, grids, 16, seed=seed)
        if poisoned:
            given.pixels[-1] = torch.nan
        found = vit.features(given, pooled=True)
        y, pooled = found.tokens, found.pooled
        expected = vit.encode(given, vit.ops, None, ["pooled"])
        valid = slice(len(grids) - poisoned)
        assert close(y[valid], expected[0][valid])
        assert close(pooled[valid], expected[1]["pooled"][valid])
        assert y[valid].isfinite().all()
        if seed not in (0, 4):  # replayed
            last = list(vit._graphs._graphs.values())[-1].recording
            assert last.inputs[2:] == () or last.inputs[2].any(1).all()
            for value in last.outputs:
                assert value[valid].isfinite().all()
                assert poisoned or value.isfinite().all()
        check(vit, patches(vit, [SMALL], 16, seed))  # in whose memory the others' inputs may lie
    assert recorder(vit).records == 3


@pytest.mark.parametrize("batch", [2, 9])
def test_what_is_captured_was_launched_before(vit, batch):
    """With the same shapes and strides, whatever the caller's are; and each image has a key that counts."""
    ops, seen = torch_ops(), []

    def linear(x, *args, residual=None, **kwargs):
        if residual is not None:
            seen.append((x.shape, x.stride(), residual.shape, residual.stride()))
        return ops.linear(x, *args, residual=residual, **kwargs)

    def attention(*args, mask):
        seen.append((mask.shape, mask.stride()))
        masks.append(mask.clone())
        return ops.attention(*args, mask=mask)

    masks = []
    vit.ops = replace(ops, linear=linear, attention=attention)
    given = patches(vit, [SMALL] * batch, 16)
    assert given.positions.stride(0) == 0
    pixels = given.pixels.repeat_interleave(2, 1)[:, ::2]
    vit.features(Patches(pixels, given.positions, given.mask.t().clone().t()), pooled=True)
    half = len(seen) // 2
    assert seen[:half] == seen[half:] and half == 2 * NAFLEX.depth + 1 + 4
    assert all(mask.any(1).all() for mask in masks[: len(masks) // 2])


def test_the_callers_tensors_are_copied(vit):
    """Written after a call they change no result that was returned, and each call sees them as they are."""
    given = patches(vit, [NATIVE, SMALL, TALL], 16)
    given = Patches(*(t.clone() for t in given))
    before = [t.clone() for t in given]
    expected = by_launches(vit, given)
    found = [vit(given), vit(given)]
    changes = [
        lambda: given.mask.logical_not_(),
        lambda: given.mask[:, ::2].fill_(True),
        lambda: given.positions.mul_(-2),
        lambda: given.pixels.add_(1),
    ]
    given.mask[0, 3] = False
    for change in changes:
        change()
        given.mask[:, 1] = True
        assert not close(by_launches(vit, given), expected)
        check(vit, given, replayed=True)
    for y in found:
        assert close(y, expected)
        y.fill_(0)
    for t, value in zip(given, before):
        t.copy_(value)
    assert close(vit(given), expected)
    assert recorder(vit).records == 1


def written(t: Tensor) -> None:
    t.mul_(1.5)


def given_memory(t: Tensor) -> None:
    t.data = 1.5 * t.data


@pytest.mark.parametrize("change", [written, given_memory])
def test_no_stale_result(vit, change):
    """Each weight in turn; the position table too, resized or not; the query that is derived for the pooling."""
    calls = [([NATIVE, WIDE], 16), ([NATIVE, SMALL], 16), ([NATIVE, NATIVE], 16)]
    with torch.inference_mode(False), torch.no_grad():
        for name, p in vit.named_parameters():
            before = [vit.features(patches(vit, *call), pooled=True) for call in calls]
            change(p)
            twin = copy.deepcopy(vit)
            for _ in range(3):
                for call, old in zip(calls, before):
                    vit.capture_now()
                    given = patches(vit, *call)
                    found = vit.features(given, pooled=True)
                    tokens, kept = twin.encode(patches(twin, *call), twin.ops, None, ["pooled"])
                    assert close(found.tokens, tokens) and close(found.pooled, kept["pooled"])
                    assert not close(found.pooled, old.pooled), name
    assert recorder(vit).replays > 2 * len(list(vit.parameters()))
    assert (recorder(vit).records == 2) == (change is written)


def test_dropped_and_made_again(vit):
    given = [
        patches(vit, grids, 16, seed) for seed, grids in enumerate([[NATIVE], [SMALL], [TALL]])
    ]
    drops = [
        vit.release_graphs,
        vit.refresh,
        lambda: vit.blocks.__setitem__(0, copy.deepcopy(vit.blocks[1])),
        lambda: setattr(vit.attn_pool, "latent", nn.Parameter(2 * vit.attn_pool.latent)),
        lambda: setattr(vit, "graphs", not vit.graphs),
        lambda: setattr(vit, "graphs", not vit.graphs),
    ]
    with torch.inference_mode(False), torch.no_grad():
        for drop in [*drops, lambda: None]:
            for _ in range(8):
                for p in given:
                    found = vit.features(p, pooled=True)
                    tokens, kept = vit.encode(p, vit.ops, None, ["pooled"])
                    assert close(found.tokens, tokens) and close(found.pooled, kept["pooled"])
            assert vit.graph_report().count == (2 if vit.graphs else 0)
            drop()


def test_pushed_out_by_the_limit(vit):
    vit.graph_bytes = SoftwareRecorder.bytes_a_graph
    for seed in range(40):
        grids = [[SMALL], [NATIVE, SMALL], [NATIVE]][seed % 3]
        check(vit, patches(vit, grids, 16, seed))
        assert vit.graph_report().count <= 1
    assert recorder(vit).records > 3


def test_what_is_said_of_them(vit):
    vit.graph_bytes = 1
    shapes = [
        ([NATIVE, WIDE], "batch 2 of 16 patches, "),
        ([SMALL], "batch 1 of 16 patches, masked, "),
    ]
    for grids, expected in shapes:
        with pytest.warns(UserWarning, match=f"launches {expected}torch.float32, without a CUDA"):
            vit(patches(vit, grids, 16))
    for refused, (_, expected) in zip(vit.graph_report().refused, shapes, strict=True):
        assert refused.startswith(f"{expected}torch.float32: its graph takes")


def test_pixels_of_another_dtype(vit):
    """Converted into the graph's input; positions are the model's."""
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        for seed in range(3):
            given = patches(vit, [NATIVE, SMALL], 16, seed).to(dtype)
            y, _ = vit.run(given, vit.ops, dtype=torch.float32)
            assert close(y, by_launches(vit, given.to(torch.float32)))
    assert (recorder(vit).records, recorder(vit).replays) == (1, 8)
