"""Candidate kernels: their source run on CPU tensors (gluon_model.py), what they refuse, when they apply."""

import subprocess
import sys
from itertools import product

import pytest
import torch

from accuracy import assert_as_accurate
from refusals import refused

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")
from benchmarks import candidates
from benchmarks.candidates import CANDIDATES, flash_specialised
from candidate_runs import GEMMS, gpu, linear, modelled, random
from vit_fast.kernels.activations import NAMES
from vit_fast.kernels.attention import attention_ref
from vit_fast.kernels.tuning import KNOWN
from vit_fast.workload import MODELS, operations

LINEAR = [(module, c) for module in GEMMS for c in module.CONFIGS]
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the model stands in for a GPU that is not there"
)


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
