"""Candidate kernels under the model, against their definitions."""

from dataclasses import replace

import torch

from accuracy import assert_as_accurate
from benchmarks.candidates import flash_specialised, gemm_cooperative, gemm_pingpong
from gluon_model import Modelled
from vit_fast.kernels.linear import linear_ref
from vit_fast.kernels.tuning import KNOWN, Gpu

GEMMS = {gemm_pingpong: "_pingpong_kernel", gemm_cooperative: "_cooperative_kernel"}
KERNELS = {name: getattr(module, name) for module, name in GEMMS.items()}
KERNELS["_flash_kernel"] = flash_specialised._flash_kernel


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
