"""Graphs of a ViT, through a recorder in software: never another result than by ordinary launches."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from models import SPEC, images
from recorder import SoftwareRecorder, by_launches, check, close, recorded_vit, recorder
from vit_fast import ViT, torch_ops
from vit_fast.graphs import LARGEST, Graphs, bucket

SIZES = [*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64]


@pytest.fixture
def vit() -> ViT:
    return recorded_vit()


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


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
