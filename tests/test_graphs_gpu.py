"""CUDA graphs on a GPU: what the recorder in software cannot show. Nothing here runs without one."""

import multiprocessing
import threading

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTModel

import vit_fast
from models import NORM, SPEC, hf_model, images, randomize
from vit_fast import ViT
from vit_fast.recorder import CudaRecorder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def inference():
    # memory that is filled in deterministic mode costs a launch
    torch.use_deterministic_algorithms(False)
    with torch.inference_mode():
        yield


def make(dtype: torch.dtype = torch.float16, device: str = "cuda") -> ViT:
    with torch.inference_mode(False):
        return randomize(ViT(SPEC, NORM)).to(device, dtype).eval().requires_grad_(False)


@pytest.fixture
def vit() -> ViT:
    return make()


def pixels_of(
    *shape: int, seed: int = 1, dtype: torch.dtype = torch.float16, device="cuda"
) -> Tensor:
    return images(*shape, seed=seed, dtype=dtype).to(device)


def by_launches(vit: ViT, pixels: Tensor) -> Tensor:
    return vit.encode(pixels, vit_fast.triton_ops())[0]


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8])
def test_capture_and_replay(dtype):
    model_dtype = torch.float16 if dtype == torch.uint8 else dtype
    vit = make(model_dtype)
    for batch, seed in [(2, 0), (9, 1), (2, 2), (10, 3), (64, 4), (9, 5), (65, 6)]:
        pixels = pixels_of(batch, 3, 40, 48, seed=seed, dtype=dtype)
        torch.testing.assert_close(
            vit(pixels),
            by_launches(vit, pixels),
            rtol=0,
            atol=0.1 if dtype == torch.bfloat16 else 2e-2,
        )
    report = vit.graph_report()
    assert report.count == 3 and report.nbytes > 0 and not report.refused


def test_padding_reaches_no_valid_row(vit):
    full = pixels_of(10, 3, 32, 32)
    vit(full)
    full[-1] = torch.nan
    vit(full)
    pixels = pixels_of(9, 3, 32, 32, seed=5)
    assert_close(vit(pixels), by_launches(vit, pixels))


def test_results_of_many_calls_in_flight(vit):
    """Nothing waits between them: no result is overwritten by a later replay."""
    pixels = [pixels_of(1 + i % 3, 3, 32, 32, seed=i) for i in range(60)]
    expected = [by_launches(vit, p) for p in pixels]
    for found, e in zip([vit(p) for p in pixels], expected):
        assert_close(found, e)


def test_interleaved_streams_and_threads(vit):
    """Two streams in each of four threads, without a synchronization of theirs."""
    calls = [pixels_of(1 + i % 4, 3, 32, 32 + 8 * (i % 2), seed=i) for i in range(8)]
    expected = [by_launches(vit, p) for p in calls]
    for p in calls:
        vit(p)
    torch.cuda.synchronize()
    wrong = []

    def use(i: int) -> None:
        try:
            streams = [torch.cuda.Stream(), torch.cuda.Stream()]
            found = []
            with torch.inference_mode():
                for n in range(100):
                    with torch.cuda.stream(streams[n % 2]):
                        j = (i + n) % 8
                        found.append((j, vit(calls[j])))
                for stream in streams:
                    stream.synchronize()
                for j, y in found:
                    assert_close(y, expected[j])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=use, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong


def test_captured_in_threads_at_once():
    """Captures are made one at a time, while other threads launch and allocate."""
    models, wrong = [make() for _ in range(3)], []

    def use(vit: ViT) -> None:
        try:
            with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
                for i in range(40):
                    pixels = pixels_of(1 + i % 8, 3, 32, 32, seed=i)
                    assert_close(vit(pixels), by_launches(vit, pixels))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=use, args=(vit,)) for vit in models]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong
    assert all(vit.graph_report().count == 8 and not vit.graph_report().refused for vit in models)


def test_moved_while_graphs_exist(vit):
    pixels = pixels_of(2, 3, 40, 48)
    for _ in range(2):
        vit(pixels)
    with torch.inference_mode(False), torch.no_grad():
        for change in (
            lambda: vit.cpu().cuda(),
            lambda: vit.float().half(),
            lambda: vit.pos_embed.mul_(2),
            lambda: setattr(
                vit.blocks[0].mlp.fc1, "weight", nn.Parameter(2 * vit.blocks[0].mlp.fc1.weight)
            ),
            lambda: setattr(vit.norm.bias, "data", vit.norm.bias.data + 1),
        ):
            change()
            torch.cuda.empty_cache()
            for _ in range(20):
                assert_close(vit(pixels), by_launches(vit, pixels))
    assert vit.graph_report().count == 1


def test_the_memory_comes_back(vit):
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    vit.warmup([(batch, 3, 32, 32) for batch in (1, 8, 64)], dtype=torch.float16)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    held = vit.graph_report().nbytes
    assert torch.cuda.memory_reserved() >= before + held > before
    vit.release_graphs()
    assert torch.cuda.memory_reserved() <= before + vit.derived_nbytes() + 2 * 2**20


class Crowded(CudaRecorder):
    """All but 2 MB of what is allowed is taken while it captures."""

    def record(self, *args):
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved() + 2 * 2**20) / total
        )
        try:
            return super().record(*args)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)


def test_out_of_memory_at_capture(vit):
    """Captures fail, calls do not, what was taken comes back; and the next shape is captured."""
    vit.recorder = Crowded
    pixels = pixels_of(64, 3, 128, 128)
    expected = by_launches(vit, pixels)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with pytest.warns(UserWarning, match="out of GPU memory at capture"):
        assert_close(vit(pixels), expected)
    assert_close(vit(pixels), expected)
    assert vit.graph_report().count == 0 and vit.graph_report().refused
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2 * 2**20
    vit.recorder = CudaRecorder
    vit._graphs = None
    vit.warmup([(1, 3, 32, 32)])
    assert vit.graph_report().count == 1


def test_a_limit(vit):
    vit.graph_bytes = 1
    with pytest.warns(UserWarning, match="the limit is"):
        vit(pixels_of(1, 3, 32, 32))
    assert vit.graph_report().nbytes == 0
    assert_close(vit(pixels_of(1, 3, 32, 32)), by_launches(vit, pixels_of(1, 3, 32, 32)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_the_second_gpu():
    """While the first one is current."""
    vit = make(device="cuda:1")
    for seed in range(4):
        pixels = pixels_of(2, 3, 32, 32, seed=seed, device="cuda:1")
        y = vit(pixels)
        assert y.device == torch.device("cuda:1")
        assert_close(y, by_launches(vit, pixels))
    assert vit.graph_report().count == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8])
def test_a_capture_of_the_users_own(vit, dtype):
    """It holds the launches themselves, stays right when sizes come and go, and sees writes after a call."""
    pixels = pixels_of(2, 3, 40, 48, dtype=dtype)
    vit(pixels)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = vit(pixels)
    for width in range(8, 120, 8):  # pushes the positions of 40 x 48 out of what is kept
        vit(pixels_of(1, 3, 8, width, dtype=dtype))
    torch.cuda.empty_cache()
    pixels.copy_(pixels_of(2, 3, 40, 48, dtype=dtype, seed=9))
    graph.replay()
    assert_close(y, by_launches(vit, pixels))
    with torch.inference_mode(False), torch.no_grad():
        vit.cls_token.mul_(2)
    expected = vit(pixels)
    graph.replay()
    assert_close(y, expected)


def test_bytes_that_were_never_seen_before_a_capture(vit):
    pixels = pixels_of(2, 3, 32, 32, dtype=torch.uint8)
    by_launches(vit, pixels_of(2, 3, 32, 32))
    graph = torch.cuda.CUDAGraph()
    message = "call the model once with uint8 pixels before the capture"
    with pytest.raises(RuntimeError, match=message), torch.cuda.graph(graph):
        vit(pixels)


def _in_a_fork(vit: ViT, pixels: Tensor, pipe) -> None:
    try:
        vit(pixels)
        pipe.send("nothing was raised")
    except RuntimeError as error:
        pipe.send(str(error))


def test_a_forked_worker(vit):
    pixels = pixels_of(1, 3, 32, 32)
    vit(pixels)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_in_a_fork, args=(vit, pixels, there), daemon=True)
    process.start()
    assert here.poll(60) and "get_context('spawn')" in here.recv()
    process.join(60)


def test_an_accelerated_model():
    with torch.inference_mode(False):
        stock = hf_model(ViTModel, torch.float16).cuda().requires_grad_(False)
        stock.set_attn_implementation("sdpa")
        fast = vit_fast.accelerate(hf_model(ViTModel, torch.float16).cuda().requires_grad_(False))
        fast.set_attn_implementation("sdpa")
    vit_fast.warmup(fast, [(1, 3, 32, 32)])
    for batch in (1, 9, 1, 9):
        pixels = pixels_of(batch, 3, 32, 32, seed=batch)
        found, expected = (m(pixels, output_hidden_states=True) for m in (fast, stock))
        assert_close(found.last_hidden_state, expected.last_hidden_state)
        for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
            assert_close(a, b)
        with torch.inference_mode(False), torch.no_grad():
            for model in (fast, stock):
                model.layers[0].attention.q_proj.weight.mul_(1.1)
    (entry,) = vit_fast.explain(fast)
    assert entry.ops == "triton" and entry.graphs >= 2 and not entry.no_graph
