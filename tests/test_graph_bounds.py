"""What graphs may cost and what may go wrong with them: memory, captures in vain, threads, forks."""

import multiprocessing
import threading

import pytest
import torch

from models import NORM, SPEC, images
from recorder import SoftwareRecorder, by_launches, recorded_vit, recorder
from vit_fast import ViT
from vit_fast.graphs import COUNT, LONGEST_WAIT, WORTH, GraphCache

BYTES = SoftwareRecorder.bytes_a_graph
SHAPES = [(1, 3, 32, 32), (2, 3, 32, 32), (3, 3, 32, 32), (4, 3, 32, 32)]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def vit() -> ViT:
    return recorded_vit()


def check(vit: ViT, *shape: int, seed: int = 1) -> None:
    pixels = images(*shape, seed=seed)
    torch.testing.assert_close(vit(pixels), by_launches(vit, pixels), rtol=0, atol=1e-5)


def batches(vit: ViT) -> list[int]:
    return [key.batch for key in vit._graphs._graphs]


def bounded(vit: ViT, **bounds: int) -> None:
    vit._graphs = GraphCache(vit, vit.recorder, **bounds)


def test_the_one_used_least_recently_goes(vit):
    bounded(vit, count=3)
    for shape in [*SHAPES[:3], SHAPES[0]]:
        check(vit, *shape)
    vit._graphs.capture_now()
    check(vit, *SHAPES[3])
    assert batches(vit) == [3, 1, 4]
    for shape in SHAPES:
        check(vit, *shape)
    assert recorder(vit).resets == 0  # a pool with graphs in it gives nothing back


def test_over_the_limit_all_others_go(vit):
    vit.graph_bytes = 2 * BYTES
    for shape in SHAPES[:3]:
        vit.warmup([shape])
    assert batches(vit) == [3]
    assert vit.graph_report().nbytes == recorder(vit).pool == BYTES
    assert recorder(vit).resets == 1
    assert (
        recorder(vit).records == 4
    )  # the third one twice: in the pool that was full, and in a new one
    for shape in SHAPES:
        check(vit, *shape)


def test_one_over_the_limit_alone_is_not_kept(vit):
    vit.graph_bytes = BYTES - 1
    with pytest.warns(UserWarning, match=r"batch 1 of 32 x 32.* takes 0.0 MB, the limit is 0.0 MB"):
        check(vit, *SHAPES[0])
    for _ in range(3):
        check(vit, *SHAPES[0])
    assert recorder(vit).records == 1
    assert vit.graph_report().count == vit.graph_report().nbytes == recorder(vit).pool == 0


def test_ever_new_sizes_are_not_captured_each_time(vit):
    """The first ones are, then ever fewer of them."""
    n = 0
    for height in range(1, 41):
        for width in range(1, 9):
            vit(images(1, 3, 8 * height, 8 * width))
            n += 1
    assert recorder(vit).records <= COUNT + 6 + (n - COUNT) // LONGEST_WAIT
    assert len(batches(vit)) == COUNT


def test_two_that_push_each_other_out(vit):
    bounded(vit, limit=BYTES)
    for i in range(300):
        check(vit, *SHAPES[i % 2], seed=i)
    assert 2 < recorder(vit).records < 300 / 8


def test_a_capture_that_paid_off_costs_no_wait(vit):
    for _ in range(3):
        for _ in range(WORTH + 1):
            check(vit, *SHAPES[0])
        vit.norm.weight.data = vit.norm.weight.data.clone()
    check(vit, *SHAPES[0])
    assert recorder(vit).records == 4


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried")
UNFIT = RuntimeError("not permitted when stream is capturing\nmore")


@pytest.mark.parametrize(
    "errors, why",
    [
        ([OUT, OUT], "out of GPU memory at capture"),
        ([UNFIT], r"it cannot be captured \(not permitted"),
        ([OUT, UNFIT], r"it cannot be captured \(not permitted"),
    ],
)
def test_a_capture_that_fails(vit, errors, why):
    """What it took is given back, with the pool; its shape is launched from then on, the others are not."""
    check(vit, *SHAPES[0])
    recorder(vit).fail += errors
    with pytest.warns(
        UserWarning, match=f"batch 2 of 32 x 32, torch.float32, without a CUDA graph: {why}"
    ):
        check(vit, *SHAPES[1])
    assert recorder(vit).pool == vit.graph_report().nbytes == 0
    (refused,) = vit.graph_report().refused
    assert refused.startswith("batch 2 of 32 x 32, torch.float32: ") and "more" not in refused
    for _ in range(4):
        for shape in SHAPES[:2]:
            check(vit, *shape)
    assert batches(vit) == [1]
    assert recorder(vit).records == 2
    vit.refresh()  # another try
    vit.warmup(SHAPES[:2])
    assert batches(vit) == [1, 2] and not vit.graph_report().refused


def test_out_of_memory_once(vit):
    """With the other graphs gone, and what the allocator kept, there is room."""
    check(vit, *SHAPES[0])
    recorder(vit).fail.append(OUT)
    check(vit, *SHAPES[1])
    assert batches(vit) == [2] and recorder(vit).pool == BYTES
    for _ in range(4):
        for shape in SHAPES[:2]:
            check(vit, *shape)
    assert sorted(batches(vit)) == [1, 2]


def test_an_error_of_another_kind_is_not_hidden(vit):
    check(vit, *SHAPES[0])
    recorder(vit).fail.append(TypeError("a bug"))
    with pytest.raises(TypeError, match="a bug"):
        vit(images(*SHAPES[1]))
    for shape in SHAPES:
        check(vit, *shape)


def test_graphs_give_way_to_the_model(vit, monkeypatch):
    """Out of memory by ordinary launches, while graphs hold some: they go, and the call is tried once more."""
    vit.warmup(SHAPES[:2])
    encode, fails = vit.encode, []

    def short_of_memory(*args):
        if fails:
            fails.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(*args)

    monkeypatch.setattr(vit, "encode", short_of_memory)
    fails[:] = [1]
    assert vit(images(70, 3, 32, 32)).shape[0] == 70
    assert vit.graph_report().count == recorder(vit).pool == 0
    vit.warmup(SHAPES[:1])
    for fails[:] in ([1, 1], [1]):  # again with them gone; with none there
        with pytest.raises(torch.OutOfMemoryError):
            vit(images(70, 3, 32, 32))
        assert not fails
    check(vit, *SHAPES[0])


def test_a_weight_written_during_the_capture(vit):
    """By another thread, say: that capture is thrown away, the next call makes another."""

    class Written(SoftwareRecorder):
        times = 0

        def record(self, *args):
            Written.times += 1
            if Written.times == 1:
                vit.cls_token.mul_(2)
            return super().record(*args)

    vit.recorder = Written
    vit(images(*SHAPES[0]))
    for _ in range(3):
        check(vit, *SHAPES[0])
    assert (recorder(vit).records, recorder(vit).replays, Written.times) == (1, 2, 2)


def test_warmup(vit):
    """Captures what calls of these shapes need, pooled and logits, bytes and floats."""
    vit.warmup([(1, 3, 32, 32), (9, 3, 40, 48)])
    vit.warmup([(1, 3, 32, 32)], dtype=torch.uint8, tokens=False, logits=True)
    assert recorder(vit).records == 3
    check(vit, 1, 3, 32, 32)
    check(vit, 10, 3, 40, 48)
    vit.features(images(1, 3, 32, 32, dtype=torch.uint8), tokens=False, logits=True)
    assert (recorder(vit).records, recorder(vit).replays) == (3, 3)
    for wrong, message in [
        ((1, 32, 32), r"a shape must be \(B, C, H, W\), each at least 1, got \(1, 32, 32\)"),
        ((0, 3, 32, 32), "each at least 1"),
        ((1, 3, 33, 32), "multiples of the patch"),
        ((1, 4, 32, 32), "3 channels"),
    ]:
        with pytest.raises(ValueError, match=message):
            vit.warmup([wrong])
    with pytest.raises(ValueError, match="pixels are torch.float16"):
        vit.warmup(SHAPES, dtype=torch.float16)


def test_warmup_on_a_cpu():
    """A plain call: what is derived from weights is made."""
    vit = ViT(SPEC, NORM)
    assert vit.derived_nbytes() == 0
    vit.warmup([(1, 3, 40, 48)])
    assert vit.derived_nbytes() > 0
    assert vit.graph_report().count == 0 and vit._graphs is None


def test_threads(vit):
    """Eight at once, of several sizes and batches, while weights are replaced by equal ones and graphs dropped."""
    shapes = [(1, 3, 32, 32), (9, 3, 32, 32), (2, 3, 40, 48), (3, 3, 8, 8)]
    calls = [images(*shapes[i % 4], seed=i) for i in range(8)]
    expected = [by_launches(vit, pixels) for pixels in calls]
    wrong, done = [], threading.Event()

    def use(i: int) -> None:
        try:
            with torch.inference_mode():
                for _ in range(30):
                    torch.testing.assert_close(vit(calls[i]), expected[i], rtol=0, atol=1e-5)
        except BaseException as error:
            wrong.append((i, error))

    def disturb() -> None:
        while not done.wait(0.02):
            vit.blocks[0].mlp.fc1.weight = torch.nn.Parameter(vit.blocks[0].mlp.fc1.weight.clone())
            vit.release_graphs()

    for disturbed in (False, True):
        threads = [threading.Thread(target=use, args=(i,)) for i in range(8)]
        other = threading.Thread(target=disturb)
        for t in [*threads, other][: 8 + disturbed]:
            t.start()
        for t in threads:
            t.join()
        if disturbed:
            done.set()
            other.join()
        else:
            assert recorder(vit).replays > 100
    assert not wrong, wrong


def _in_a_fork(vit: ViT, pipe) -> None:
    try:
        vit(images(*SHAPES[0]))
        pipe.send("nothing was raised")
    except RuntimeError as error:
        pipe.send(str(error))


def test_a_forked_worker_is_told_to_be_spawned(vit):
    """A CUDA context does not survive a fork; a model that was never on a GPU does."""
    context = multiprocessing.get_context("fork")
    for used, expected in ((False, "nothing was raised"), (True, "get_context('spawn')")):
        if used:
            check(vit, *SHAPES[0])
        here, there = context.Pipe()
        process = context.Process(target=_in_a_fork, args=(vit, there), daemon=True)
        process.start()
        assert here.poll(60) and expected in here.recv()
        process.join(60)
        assert process.exitcode == 0
