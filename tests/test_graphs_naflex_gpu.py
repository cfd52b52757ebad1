"""CUDA graphs of Patches on a GPU: what the recorder in software cannot show. Nothing here runs without one."""

import pytest
import torch
from torch import Tensor

import vit_fast
from models import NAFLEX, patches, randomize
from vit_fast import ViT
from vit_fast.pixels import Patches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

NATIVE, WIDE, TALL, SMALL = (4, 4), (2, 8), (5, 3), (2, 3)
CALLS = [
    ([NATIVE, WIDE], 16),
    ([NATIVE, SMALL], 16),
    ([TALL] * 8 + [SMALL], 16),
    ([WIDE] * 9, 16),
    ([SMALL] * 10, 23),
    ([SMALL, TALL], 23),
]


@pytest.fixture(autouse=True)
def inference():
    # memory that is filled in deterministic mode costs a launch
    torch.use_deterministic_algorithms(False)
    with torch.inference_mode():
        yield


def make(dtype: torch.dtype = torch.float16) -> ViT:
    with torch.inference_mode(False):
        return randomize(ViT(NAFLEX)).to("cuda", dtype).eval().requires_grad_(False)


@pytest.fixture
def vit() -> ViT:
    return make()


def assert_right(vit: ViT, given: Patches, atol: float = 2e-2) -> None:
    found = vit.features(given, pooled=True)
    tokens, kept = vit.encode(given, vit_fast.triton_ops(), None, ["pooled"])
    for a, b in ((found.tokens, tokens), (found.pooled, kept["pooled"])):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_capture_and_replay(dtype):
    """In any order, with a mask and without."""
    vit = make(dtype)
    for round, calls in enumerate([CALLS, CALLS[::-1], CALLS[::2] + CALLS[1::2]]):
        for i, call in enumerate(calls):
            given = patches(vit, *call, seed=10 * round + i)
            assert_right(vit, given, 0.1 if dtype == torch.bfloat16 else 2e-2)
    report = vit.graph_report()
    assert report.count == len(CALLS) and report.nbytes > 0 and not report.refused


def rows_of_padding(vit: ViT) -> list[Tensor]:
    (graph,) = (g for key, g in vit._graphs._graphs.items() if key.batch == 10)
    return [y[9:] for y in graph.recording.outputs]


def test_padding_is_finite(vit):
    """Whatever the pool's memory has held, and after NaN in a full batch."""
    nine = patches(vit, [TALL] * 8 + [SMALL], 16)
    ten = patches(vit, [SMALL] * 10, 16)
    ten.pixels[-1] = torch.nan
    for _ in range(3):
        for given in (nine, patches(vit, [SMALL], 16), nine):
            assert_right(vit, given)
        assert all(y.isfinite().all() for y in rows_of_padding(vit))
        vit.features(ten, pooled=True)
        assert not rows_of_padding(vit)[0].isfinite().any()


def test_results_of_many_calls_in_flight(vit):
    """Nothing waits between them, and the callers' tensors are written at once: no copy comes too late."""
    made = [patches(vit, *CALLS[i % len(CALLS)], seed=i) for i in range(48)]
    expected = [vit.encode(given, vit_fast.triton_ops())[0] for given in made]
    for _ in range(2):
        found = []
        for given in made:
            own = Patches(*(t if t is None else t.clone() for t in given))
            found.append(vit(own))
            own.pixels.fill_(torch.nan)
            if own.mask is not None:
                own.mask.fill_(False)
        for y, e in zip(found, expected):
            torch.testing.assert_close(y, e, rtol=0, atol=2e-2)


def test_positions_written_between(vit):
    for scale in (1.0, 2.0, 0.5):
        with torch.inference_mode(False), torch.no_grad():
            vit.pos_embed.mul_(scale)
            vit.attn_pool.latent.mul_(scale)
        for call in CALLS * 3:
            assert_right(vit, patches(vit, *call))
    assert vit.graph_report().count == len(CALLS)
