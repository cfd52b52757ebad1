"""The barriers of the candidate kernels, whose own source runs under random schedules: each tile right and stored once,
whatever is slow; and the same source, broken by hand, is caught.
"""

from itertools import product

import pytest
import torch

from accuracy import assert_as_accurate

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")
from benchmarks.candidates import flash_specialised, gemm_cooperative, gemm_pingpong
from candidate_runs import GEMMS, gpu, linear, modelled, random
from vit_fast.kernels.attention import attention_ref

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the model stands in for a GPU that is not there"
)


@pytest.mark.parametrize(
    "module, stages",
    [(gemm_pingpong, s) for s in (2, 3, 4, 5)] + [(gemm_cooperative, s) for s in (2, 3)],
    ids=lambda v: getattr(v, "NAME", v),
)
def test_linear_schedules(monkeypatch, module, stages):
    """Small tiles: 0 to 9 of them, on 1 to 3 multiprocessors, 1 to 12 K steps."""
    rows = 32 if module is gemm_cooperative else 16
    config = gemm_pingpong.Config(16, 16, 8, stages)
    for tiles, sms, steps in product(range(10), (1, 3), (1, 2, 5, 12)):
        modelled(monkeypatch, module, seed=1000 * tiles + 10 * sms + steps)
        linear(module, config, tiles * rows, 16, steps * 8, sms, extras=steps % 2 == 1)


@pytest.mark.parametrize("consumers, stages", [(2, 1), (3, 2), (2, 3), (3, 4)])
def test_attention_schedules(monkeypatch, consumers, stages):
    """0 to 9 tiles, on 1 to 4 multiprocessors, 1 to 5 blocks of keys."""
    config = flash_specialised.Config(consumers, 16, stages, 160)
    for heads, sms, blocks in product(range(10), (1, 4), (1, 2, 5)):
        modelled(monkeypatch, flash_specialised, seed=1000 * heads + 10 * sms + blocks)
        q, k, v = random(1, blocks * 16 - 3, 3, heads, 64).unbind(2)
        q = q[:, :9]
        o = flash_specialised.run(q, k, v, 0.125, gpu=gpu(sms), config=config)
        ref = attention_ref(q.double(), k.double(), v.double(), 0.125)
        baseline = attention_ref(q.float(), k.float(), v.float(), 0.125).bfloat16()
        assert_as_accurate(o, ref, baseline)


TURN = "        mbarrier.wait(turn.index(CONSUMER), (n + 1 - CONSUMER) & 1)\n"


@pytest.mark.parametrize(
    "old, new, words",
    [
        (TURN, "", "deadlock|error|overwritten|while a copy"),
        ("(n + 1 - CONSUMER) & 1", "(n + CONSUMER) & 1", "deadlock"),
        ("& 1) ^ 1)", "& 1))", "deadlock"),
        ("pred=step > 0", "pred=True", "arrivals|overwritten|deadlock|error"),
        ("empty.index((i + STAGES - 1) % STAGES)", "empty.index(stage)", "deadlock|overwritten|error"),
        ("warpgroup_mma_wait(1, deps", "warpgroup_mma_wait(2, deps", "overwritten"),
        ("mbarrier.arrive(empty.index(last % STAGES), count=1)", "pass", "deadlock"),
        ("            mbarrier.wait(arrived.index(CONSUMER), n & 1)", "            pass", "read while"),
        ("    if not RESIDUAL:\n        store_wait(0)", "    if False:\n        pass", "overwritten"),
        ("    store_wait(0)  # the last tile has left\n", "", "overwritten"),
        ("        fence_async_shared()\n        copy_out", "        copy_out", "before its fence"),
        ("    # the buffer must outlive the copy that reads it\n    store_wait(0)", "    pass", "still reads"),
        ("(PARTS * BLOCK_M + BLOCK_N) * BLOCK_K * 2", "BLOCK_N * BLOCK_K * 2", "deadlock|arrivals|while a copy"),
        ("(2 * n + CONSUMER) * steps", "n * steps", "deadlock|error|overwritten|while a copy"),
    ],
)  # fmt: skip
def test_a_broken_gemm_is_noticed(monkeypatch, old, new, words):
    config = gemm_pingpong.Config(16, 16, 8, 3)
    with pytest.raises(AssertionError, match=words):
        for seed in range(60):
            modelled(monkeypatch, gemm_pingpong, seed, (old, new))
            linear(gemm_pingpong, config, 7 * 16, 16, 5 * 8, 1, extras=seed % 2 == 0)


@pytest.mark.parametrize("module", GEMMS, ids=lambda m: m.NAME)
def test_one_stage_is_too_few(monkeypatch, module):
    modelled(monkeypatch, module)
    with pytest.raises(AssertionError, match="deadlock"):
        linear(module, gemm_pingpong.Config(16, 16, 8, 1), 16, 16, 16, 1)


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("        mbarrier.wait(q_ready.index(CONSUMER), j & 1)\n", "", "while a copy|error"),
        ("        mbarrier.arrive(q_empty.index(CONSUMER), count=1)\n", "", "deadlock"),
        ("k_empty = make_barriers(STAGES, CONSUMERS)", "k_empty = make_barriers(STAGES, 1)", "deadlock|overwritten"),
        ("            mbarrier.arrive(v_empty.index(before), count=1)\n", "", "deadlock"),
        ("warpgroup_mma_wait(1, deps=[s])", "warpgroup_mma_wait(2, deps=[s])", "before it is waited for"),
        ("        store_wait(0)\n        o_smem", "        o_smem", "overwritten"),
        ("gl.where((offs_n < N)[None, :], s, float(\"-inf\"))", "s", "error"),
        ("            o0 = _rescale(o0, alpha)\n", "", "error"),
        ("(step + blocks - 1) % blocks", "step", "error"),
        ("ROWS * (W0 + W1) * 2", "ROWS * W0", "arrivals|deadlock|while a copy"),
    ],
)  # fmt: skip
def test_a_broken_attention_is_noticed(monkeypatch, old, new, words):
    config = flash_specialised.Config(2, 16, 2, 160)
    with pytest.raises(AssertionError, match=words):
        for seed in range(60):
            modelled(monkeypatch, flash_specialised, seed, (old, new))
            q, k, v = random(1, 60, 3, 5, 64).unbind(2)
            o = flash_specialised.run(q, k, v, 0.125, gpu=gpu(1), config=config)
            ref = attention_ref(q.double(), k.double(), v.double(), 0.125)
            assert_as_accurate(o, ref, ref.bfloat16())
