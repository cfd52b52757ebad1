"""What graphs hold, when it goes, and what a capture on a GPU leaves behind where it fails."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from models import images, no_gradient
from recorder import SoftwareRecorder, recorded_vit, recorder
from test_graph_bounds import SHAPES, batches, bounded, check
from vit_fast import ViT, torch_ops
from vit_fast.recorder import CudaRecorder


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def vit() -> ViT:
    return recorded_vit()


@pytest.mark.parametrize("look", [False, True], ids=["graphs", "a look for gradients"])
def test_it_is_freed_with_its_last_reference(look):
    """Not when Python next looks for cycles: its memory is the GPU's."""
    vit = recorded_vit()
    if look:
        vit.ops = no_gradient()
        with torch.enable_grad(), pytest.warns(UserWarning, match="because a gradient is wanted"):
            vit(images(*SHAPES[0]))
    else:
        for _ in range(3):
            check(vit, *SHAPES[0])
    gc.collect()
    gc.disable()
    try:
        freed = [weakref.ref(o) for o in (vit, vit.norm.weight, vit._graphs) if o is not None]
        del vit
        assert [r() for r in freed] == [None] * len(freed)
    finally:
        gc.enable()


def test_nothing_is_freed_that_still_runs(vit):
    """On another stream: recordings, and what they hold, go once nothing runs any more."""
    waited = []

    class Waited(SoftwareRecorder):
        def wait(self):
            waited.append([key.batch for key in vit._graphs._graphs])

    vit.recorder = Waited
    bounded(vit, count=2)
    for shape in SHAPES[:3]:
        vit.warmup([shape])
    assert waited == [[1, 2, 3]] and batches(vit) == [2, 3]
    vit.release_graphs()
    assert waited[1:] == [[2, 3]] and batches(vit) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: images(2, 32, 32, 3).permute(0, 3, 1, 2),
        lambda: images(2, 3, 33, 40)[..., 1:, 1:33],
        lambda: images(1, 3, 32, 32).expand(2, -1, -1, -1),
        lambda: images(9, 3, 32, 32),
    ],
    ids=["channels last", "a crop", "expanded", "padded"],
)
def test_what_is_captured_was_launched_before(vit, make):
    """With the same strides: a kernel is compiled for those that are 1 or multiples of 16, and not during a capture."""
    ops, seen = torch_ops(), []

    def patch_embed(pixels, *args):
        seen.append((pixels.shape, pixels.stride(), pixels.data_ptr() % 16))
        return ops.patch_embed(pixels, *args)

    vit.ops = replace(ops, patch_embed=patch_embed)
    vit(make())
    launched, captured = seen
    assert launched == captured


def test_an_invalidated_capture_is_cleaned_up(monkeypatch):
    """PyTorch leaves its allocator in it. Where it had come further, that has nothing to clean."""
    made = object.__new__(CudaRecorder)
    made.device, made._pool = torch.device("cuda", 1), (0, 5)
    for ended in (False, True):
        done = []

        def end(*args, ended=ended, done=done):
            if ended:
                raise RuntimeError("not currently recording to that pool")
            done.append(("end", *args))

        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
        monkeypatch.setattr(
            torch._C,
            "_cuda_releasePool",
            lambda *args, done=done: done.append(("release", *args)),
            raising=False,
        )
        with pytest.raises(RuntimeError, match="invalidated"), made._cleaning_up():
            raise RuntimeError("invalidated")
        assert done == ([] if ended else [("end", 1, (0, 5)), ("release", 1, (0, 5))])


def test_memory_of_another_pool_is_noticed(monkeypatch):
    recorder, t = object.__new__(CudaRecorder), torch.zeros(100)
    recorder._pool = (0, 5)
    segments = [
        dict(address=t.data_ptr() - 8, total_size=500, segment_pool_id=(0, 4)),
        dict(address=t.data_ptr() + 8, total_size=500, segment_pool_id=(0, 5)),
        dict(address=t.data_ptr() - 500, total_size=500, segment_pool_id=(0, 5)),
    ]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    assert not recorder._holds(t) and recorder.nbytes() == 1000
    segments.append(dict(address=t.data_ptr(), total_size=500, segment_pool_id=(0, 5)))
    assert recorder._holds(t)


def test_a_conversion_drops_what_was_derived(vit):
    """And with it the old weights that it was made from."""
    check(vit, 1, 3, 40, 48)
    assert vit.derived_nbytes() > 0
    vit.double()
    assert vit.derived_nbytes() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_after_an_invalidated_capture():
    """On a GPU: what it took comes back, and the next capture is right."""
    recorder = CudaRecorder(torch.device("cuda", 0))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()

    def forbidden(pixels):
        y = pixels + 1
        torch.cuda.current_stream().synchronize()
        return (y,)

    with pytest.raises(RuntimeError):
        recorder.record([((8, 3, 1024, 1024), torch.float32)], forbidden)
    recorder.reset()
    assert torch.cuda.memory_reserved() <= before
    recording = recorder.record([((2, 3), torch.float32)], lambda pixels: (pixels + 1,))
    recording.inputs[0].fill_(1)
    recording.replay()
    assert recording.outputs[0].eq(2).all() and recorder.nbytes() > 0


def test_another_device_has_a_recorder_of_its_own(vit):
    check(vit, *SHAPES[0])
    first = recorder(vit)
    first.device = torch.device("meta")
    check(vit, *SHAPES[0])
    assert recorder(vit) is not first and first.pool == 0
    assert recorder(vit).device == torch.device("cpu")
