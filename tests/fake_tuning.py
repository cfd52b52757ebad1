"""A timer that is told the times, and stand-ins for the kernels' candidates: what tune is tested with on a CPU."""

import json
from dataclasses import replace

import torch
import triton

from vit_fast.kernels import attention_tiles, linear, linear_norm, linear_tiles, tables, tuning
from vit_fast.kernels.tuning import KNOWN
from vit_fast.tune import tune
from vit_fast.tune_cases import LAUNCH, Case, cases_of
from vit_fast.workload import Model

GPU, CPU = KNOWN["sm_90"], torch.device("cpu")
TOY = Model("toy", 32, 8, 64, 2, 2, 96)
VERSIONS = {"triton": triton.__version__, "torch": torch.__version__}

RULE = linear.Config(block_m=32, block_n=32, block_k=32, num_warps=4, num_stages=1)
FAST, SLOW = replace(RULE, block_m=16), replace(RULE, block_n=64)
CANDIDATES = (FAST, RULE, SLOW)
LINEAR = Case("linear", dict(M=17, N=96, K=64, dtype="fp32", epilogue="gelu"), "gelu")
CASES = cases_of([TOY], [1, 2], [torch.float32])


def stand_ins(monkeypatch, tmp_path):
    """Three candidates of a product, two of attention; and what was launched, in order."""
    launched = []

    def recorded(launch):
        def run(*args, gpu, config):
            launched.append(config)
            return launch(*args, gpu=gpu, config=config)

        return run

    for op, launch in LAUNCH.items():
        monkeypatch.setitem(LAUNCH, op, recorded(launch))
    for module in (linear_tiles, linear_norm):
        monkeypatch.setattr(module, "launch_config", lambda *shape: RULE)
    for name in ("candidates", "split_candidates"):
        monkeypatch.setattr(linear_tiles, name, lambda *shape: CANDIDATES)
    rule = attention_tiles.launch_config

    def two(*shape):
        return replace(rule(*shape), num_warps=8), rule(*shape)

    monkeypatch.setattr(attention_tiles, "candidates", two)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning.forget()
    yield launched
    tuning.forget()


class FakeTimer:
    """Launches each program on each set, and says time_of(config)."""

    def __init__(self, launched, time_of, jitter=0.01):
        self.launched, self.time_of, self.jitter = launched, time_of, jitter
        self.calls = []  # (configs, rounds)

    def sets(self, nbytes):
        return 2

    def __call__(self, programs, sets, rounds):
        samples, configs = [], []
        for program in programs:
            for i in range(sets):
                program(i)
            configs.append(self.launched[-1])
            time = self.time_of(configs[-1])
            samples.append([time * (1 + self.jitter * (r % 3 - 1)) for r in range(rounds)])
        self.calls.append((configs, rounds))
        return samples


def times(config):
    """In microseconds: 10, FAST 8, SLOW 12; an attention of more warps is faster."""
    return {FAST: 8.0, SLOW: 12.0, RULE: 10.0}.get(config, 100.0 / config.num_warps)


def timer(stand_ins):
    return FakeTimer(stand_ins, times)


def run(timer, cases=(LINEAR,), **options):
    path = tables.user_path(GPU.name)
    report = tune(cases, GPU, CPU, timer, path, VERSIONS, switches={}, **options)
    return report, json.loads(path.read_text())
