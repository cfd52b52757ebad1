"""Candidate kernels, their source run on CPU tensors under random schedules (gluon_model.py), and compiled."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product

import pytest
import torch
from accuracy import assert_as_accurate
from refusals import refused

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")
from gluon_model import Modelled

from benchmarks import candidates
from benchmarks.candidates import CANDIDATES, flash_specialised, gemm_cooperative, gemm_pingpong
from benchmarks.candidates.check import Built
from vit_fast.kernels.activations import NAMES
from vit_fast.kernels.attention import attention_ref
from vit_fast.kernels.linear import linear_ref
from vit_fast.kernels.tuning import KNOWN, Gpu
from vit_fast.workload import MODELS, operations

GEMMS = {gemm_pingpong: "_pingpong_kernel", gemm_cooperative: "_cooperative_kernel"}
KERNELS = {name: getattr(module, name) for module, name in GEMMS.items()}
KERNELS["_flash_kernel"] = flash_specialised._flash_kernel
LINEAR = [(module, c) for module in GEMMS for c in module.CONFIGS]
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the model stands in for a GPU that is not there"
)


def gpu(sms: int) -> Gpu:
    return replace(KNOWN["sm_90"], sms=sms)


def modelled(monkeypatch, module, seed=0, edit=("", "")):
    name = GEMMS.get(module, "_flash_kernel")
    monkeypatch.setattr(module, name, Modelled(KERNELS[name], seed, edit))


def random(*shape, dtype=torch.bfloat16):
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def linear(module, config, M, N, K, sms, activation=None, extras=True, dtype=torch.bfloat16):
    """Runs the candidate, compares it with the definition."""
    args = [random(M, K, dtype=dtype), random(N, K, dtype=dtype) / K**0.5, random(N, dtype=dtype)]
    args.append(activation)
    args += [random(N, dtype=dtype), random(M, N, dtype=dtype)] if extras else [None, None]
    y = module.run(*args, gpu=gpu(sms), config=config)
    ref = linear_ref(*(a.double() if isinstance(a, torch.Tensor) else a for a in args))
    assert_as_accurate(y, ref, linear_ref(*args))


@pytest.mark.parametrize("M, N, K", [(1, 8, 8), (197, 264, 136), (300, 520, 64), (513, 128, 200)])
@pytest.mark.parametrize("module, config", LINEAR, ids=lambda v: getattr(v, "NAME", str(v)))
def test_linear(monkeypatch, module, config, M, N, K):
    torch.manual_seed(M)
    for sms, extras in product((1, 2, 132), (False, True)):
        modelled(monkeypatch, module, seed=sms)
        linear(module, config, M, N, K, sms, "gelu", extras)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", [None, *NAMES])
def test_epilogues(monkeypatch, activation, dtype):
    for module in GEMMS:
        modelled(monkeypatch, module)
        linear(module, module.CONFIGS[0], 150, 136, 72, 1, activation, dtype=dtype)


@pytest.mark.parametrize("stages", [2, 3, 4, 5])
@pytest.mark.parametrize("module", GEMMS, ids=lambda m: m.NAME)
def test_linear_schedules(monkeypatch, module, stages):
    """Small tiles: 0 to 9 of them, on 1 to 4 multiprocessors, 1 to 12 K steps."""
    rows = 32 if module is gemm_cooperative else 16
    config = gemm_pingpong.Config(16, 16, 8, stages)
    for tiles, sms, steps in product(range(10), (1, 2, 4), (1, 2, 3, 7, 12)):
        modelled(monkeypatch, module, seed=1000 * tiles + 10 * sms + steps)
        linear(module, config, tiles * rows, 16, steps * 8, sms, extras=steps % 2 == 1)


@pytest.mark.parametrize("D", [56, 64, 72, 80, 88, 96, 120, 128])
def test_attention(monkeypatch, D):
    torch.manual_seed(D)
    for config, (Nq, N) in product(
        flash_specialised.configs(D), [(1, 1), (64, 128), (197, 197), (1, 257), (300, 70)]
    ):
        modelled(monkeypatch, flash_specialised, seed=N)
        q = random(2, Nq, 3, D)
        k, v = random(2, N, 2, 3, D).unbind(2)
        args = (q, k, v, 0.7 * D**-0.5)
        o = flash_specialised.run(*args, gpu=gpu(3), config=config)
        ref = attention_ref(*(a.double() for a in args[:3]), args[3])
        baseline = torch.nn.functional.scaled_dot_product_attention(
            *(a.transpose(1, 2) for a in args[:3]), scale=args[3]
        )
        assert_as_accurate(o, ref, baseline.transpose(1, 2).flatten(2))


def test_attention_reads_packed_projections(monkeypatch):
    modelled(monkeypatch, flash_specialised)
    q, k, v = random(2, 50, 3, 4, 72, dtype=torch.float16).unbind(2)
    o = flash_specialised.run(q, k, v, 0.1, gpu=gpu(132))
    ref = attention_ref(q.double(), k.double(), v.double(), 0.1)
    assert_as_accurate(o, ref, attention_ref(q.float(), k.float(), v.float(), 0.1).half())


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("consumers", [2, 3])
def test_attention_schedules(monkeypatch, consumers, stages):
    """0 to 9 tiles, on 1 to 4 multiprocessors, 1 to 7 blocks of keys."""
    config = flash_specialised.Config(consumers, 16, stages, 160)
    for heads, sms, blocks in product(range(10), (1, 2, 4), (1, 2, 3, 7)):
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
        (TURN, "", "worst row|largest error|overwritten|while a copy"),
        ("(n + 1 - CONSUMER) & 1", "(n + CONSUMER) & 1", "deadlock"),
        ("& 1) ^ 1)", "& 1))", "deadlock"),
        ("pred=step > 0", "pred=True", "arrivals|overwritten|deadlock|worst row|largest error"),
        ("empty.index((i + STAGES - 1) % STAGES)", "empty.index(stage)", "overwritten|error|arriv"),
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
        ("k_empty = make_barriers(STAGES, CONSUMERS)", "k_empty = make_barriers(STAGES, 1)", "overwr|arriv|error"),
        ("            mbarrier.arrive(v_empty.index(before), count=1)\n", "", "deadlock"),
        ("warpgroup_mma_wait(1, deps=[s])", "warpgroup_mma_wait(2, deps=[s])", "Product|overwritten"),
        ("        store_wait(0)\n        o_smem", "        o_smem", "overwritten"),
        ("gl.where((offs_n < N)[None, :], s, float(\"-inf\"))", "s", "error"),
        ("            o0 = _rescale(o0, alpha)\n", "", "error"),
        ("(step + blocks - 1) % blocks", "step", "error"),
        ("ROWS * (W0 + W1) * 2", "ROWS * W0", "arrivals|deadlock|while a copy"),
    ],
)  # fmt: skip
def test_a_broken_attention_is_noticed(monkeypatch, old, new, words):
    config = flash_specialised.Config(2, 16, 2, 160)
    with pytest.raises((AssertionError, TypeError), match=words):
        for seed in range(60):
            modelled(monkeypatch, flash_specialised, seed, (old, new))
            q, k, v = (3 * random(1, 60, 3, 5, 64)).unbind(2)
            o = flash_specialised.run(q, k, v, 0.125, gpu=gpu(1), config=config)
            ref = attention_ref(q.double(), k.double(), v.double(), 0.125)
            assert_as_accurate(o, ref, ref.bfloat16())


def test_refusals():
    x, w = random(4, 16), random(8, 16)
    hopper = gpu(132)
    for module in GEMMS:
        with refused(ValueError, "sm_80", "sm_90 only"):
            module.run(x, w, gpu=KNOWN["sm_80"])
        with refused(ValueError, "cpu", "GPU only"):
            module.run(x, w)
        with refused(ValueError, "(8, 12)", "multiples of 8"):
            module.run(x[:, :12], w[:, :12], gpu=hopper)
        with refused(ValueError, "(4, 16)", "(8, 24)", "[..., K], [N, K]"):
            module.run(x, random(8, 24), gpu=hopper)
        with refused(ValueError, "float32", "torch.bfloat16"):
            module.run(x.float(), w.float(), gpu=hopper)
        with refused(ValueError, "strides (17, 1)"):
            module.run(random(4, 17)[:, :16], w, gpu=hopper)
        with refused(ValueError, "multiple of 16 bytes"):
            module.run(random(4, 24)[:, 4:20], w, gpu=hopper)
        with refused(ValueError, "'relu'"):
            module.run(x, w, None, "relu", gpu=hopper)
    q = random(1, 5, 2, 64)
    run = flash_specialised.run
    with refused(ValueError, "sm_100"):
        run(q, q, q, 1.0, gpu=KNOWN["sm_100"])
    with refused(ValueError, "head_dim is 104"):
        run(*[random(1, 5, 2, 104)] * 3, 1.0, gpu=hopper)
    with refused(ValueError, "scale is -1"):
        run(q, q, q, -1.0, gpu=hopper)
    with refused(ValueError, "k has strides"):
        run(q, q.transpose(2, 3).contiguous().transpose(2, 3), q, 1.0, gpu=hopper)
    with refused(ValueError, "v is torch.float16"):
        run(q, q, q.half(), 1.0, gpu=hopper)
    with refused(ValueError, "(1, 5, 2, 64)", "(1, 6, 2, 64)"):
        run(q, q, random(1, 6, 2, 64), 1.0, gpu=hopper)


def test_what_they_are_for():
    assert candidates.REASON == ""
    assert len({c.name for c in CANDIDATES}) == len(CANDIDATES)
    for model in ("vit-b-16", "vit-l-16", "so400m-14-384"):
        for op in operations(MODELS[model], 8):
            applies = [c for c in CANDIDATES if c.op == op.op and c.applies(op.shape)]
            assert bool(applies) == (op.op in ("linear", "attention")), op.name
    giant = next(o for o in operations(MODELS["clip-bigg-14"], 1) if o.op == "attention")
    assert not [c for c in CANDIDATES if c.op == "attention" and c.applies(giant.shape)]


def test_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from benchmarks.candidates import CANDIDATES, REASON\n"
        "assert CANDIDATES == () and 'Gluon' in REASON, REASON"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def compiled(only: str) -> list[Built]:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.candidates.check", "--json", "--only", only]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return [Built(**json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "only, count",
    [
        ("5 stages: gelu torch.bf", 1),
        ("256x128x64, 3 stages: None scale", 1),
        ("4 stages: D=64", 2),
        (": D=72", 2),
    ],
)
def test_compiled(only, count):
    found = compiled(only)
    assert len(found) == count
    assert not [(b.launch, b.faults()) for b in found if b.faults()]


@pytest.mark.slow
def test_all_compiled():
    found = compiled("")
    assert len(found) > 40
    assert not [(b.launch, b.faults()) for b in found if b.faults()]


GOOD = Built("flash", "3.9.0", 168, (240, 24), 0, 200 << 10, 48, 6, "", 132)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"spill_bytes": 8}, "spills 8 bytes"),
        ({"smem_bytes": 228 << 10}, "of shared memory"),
        ({"wgmma": 0}, "no wgmma"),
        ({"serialised": "(C7510)"}, "serialised wgmma: (C7510)"),
        ({"overlapped": 0}, "before its exponentials"),
    ],
)
def test_each_fault_is_found(change, words):
    assert GOOD.faults() == []
    (fault,) = replace(GOOD, **change).faults()
    assert words in fault
