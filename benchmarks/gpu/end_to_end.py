"""Whole models against transformers and torch.compile, in turn, with the accuracy of each program on its row.

p50_ms, p90_ms, p99_ms: one call until its result is there, by the host's clock. burst_ms: a call among many that are
not waited for, by the GPU's; images_s and tflops are of that. peak_mib: memory beside what was there before the
program's first call. first_s: the first call, compilation and graph capture in it.
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from transformers import PreTrainedModel

import vit_fast
from benchmarks.gpu.cells import Cell
from benchmarks.gpu.digest import OURS
from benchmarks.gpu.models import DEFAULT, in_parts, ours, stock, variants
from benchmarks.gpu.programs import BACKENDS, DTYPES, judge
from benchmarks.gpu.results import smi
from benchmarks.gpu.setting import Rival, Setting
from benchmarks.gpu.timing import timer_of
from benchmarks.measure import quantile
from models import images, in_float64
from vit_fast.workload import operations

DROP_IN = "vit-fast, drop-in"
# calls a round whose latency is taken, at most
LATENCIES = 10

Program = Callable[[Tensor], Tensor]


_MODELS: dict[tuple[str, str], tuple[PreTrainedModel, PreTrainedModel]] = {}


def pair(setting: Setting, key: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """transformers' model with eager attention and its float64 twin, kept for the next cell of this process."""
    if (key, dtype) not in _MODELS:
        _MODELS.clear()
        hf = stock(setting, setting.models[key], dtype)
        _MODELS[key, dtype] = hf, in_float64(hf)
    return _MODELS[key, dtype]


def with_sdpa(hf: PreTrainedModel) -> PreTrainedModel:
    twin = copy.deepcopy(hf)
    twin.set_attn_implementation("sdpa")
    return twin


def tokens(model: PreTrainedModel) -> Program:
    return lambda pixels: model(pixels).last_hidden_state


def transformers_rivals(setting: Setting, hf: PreTrainedModel) -> dict[str, Program]:
    """And ours as a drop-in: what it adds on the host shows at batch 1."""
    return {
        DEFAULT.name: ours(setting, hf),
        DROP_IN: tokens(vit_fast.accelerate(with_sdpa(hf))),
        "transformers, sdpa": tokens(with_sdpa(hf)),
        "transformers, eager": tokens(hf),
    }


def against_transformers(setting: Setting, key: str, batch: int, dtype: str) -> dict[str, Any]:
    hf, exact = pair(setting, key, dtype)
    programs = transformers_rivals(setting, hf)
    row = compared(setting, key, batch, dtype, programs, hf, exact)
    # what a prediction is held against
    return {**row, "ms": row["programs"][OURS]["burst_ms"]}


def against_each_other(setting: Setting, key: str, batch: int, dtype: str) -> dict[str, Any]:
    """Our own ways to run a model."""
    hf, exact = pair(setting, key, dtype)
    programs = {v.name: ours(setting, hf, v) for v in variants(setting)}
    return compared(setting, key, batch, dtype, programs, hf, exact)


def against_compiled(
    setting: Setting, key: str, batch: int, dtype: str, rival: Rival
) -> dict[str, Any]:
    hf, exact = pair(setting, key, dtype)
    # around all calls: entered at each call it would count as the rival's time
    held = sdpa_kernel(BACKENDS[rival.backend]) if rival.backend else contextlib.nullcontext()
    mode = None if rival.mode == "default" else rival.mode
    model = torch.compile(with_sdpa(hf), dynamic=False, mode=mode, backend=setting.backend)
    programs = {DEFAULT.name: ours(setting, hf), rival.name: tokens(model)}
    try:
        return compared(setting, key, batch, dtype, programs, hf, exact, held)
    finally:
        torch.compiler.reset()


def compared(
    setting: Setting,
    key: str,
    batch: int,
    dtype: str,
    programs: dict[str, Program],
    hf: PreTrainedModel,
    exact: PreTrainedModel,
    held: contextlib.AbstractContextManager | None = None,
) -> dict[str, Any]:
    """The row: each program's accuracy and times on the same images. The programs alone run in `held`."""
    model = setting.models[key]
    pixels = images(batch, 3, model.image, model.image, dtype=DTYPES[dtype]).to(setting.device)
    flops = sum(o.count * o.flops for o in operations(model, batch))
    ref = in_parts(tokens(exact), pixels.double())
    baseline = tokens(hf)(pixels)
    found = {}
    with torch.inference_mode(), held or contextlib.nullcontext():
        for name, program in programs.items():
            found[name] = first_calls(setting, program, pixels) | {
                # a result may lie in a graph's own memory until the next call
                **judge(program(pixels).clone(), ref, baseline)
            }
        before = smi()
        times = in_rounds(setting, programs, pixels)
        after = smi()
    for name, (latencies, bursts) in times.items():
        burst = quantile(bursts, 0.5)
        found[name] |= {
            **{f"p{q}_ms": round(quantile(latencies, q / 100), 4) for q in (50, 90, 99)},
            "burst_ms": round(burst, 4),
            "samples": len(latencies),
            "images_s": round(batch / burst * 1e3, 1),
            "tflops": round(flops / burst / 1e9, 2),
        }
    mine = [name for name in found if name.startswith(OURS)]
    wrong = "; ".join(f"{name}: {found[name]['wrong']}" for name in mine if found[name]["wrong"])
    return {
        "model": key, "batch": batch, "dtype": dtype, "gflop": round(flops / 1e9, 2), "programs": found,
        "wrong": wrong, "smi_before": before, "smi_after": after, "says": in_words(found),
    }  # fmt: skip


def in_words(found: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{name} {row['images_s']:.0f} img/s" for name, row in found.items())


def first_calls(setting: Setting, program: Program, pixels: Tensor) -> dict[str, float]:
    timer = timer_of(setting)
    before = timer.reset_peak()
    begin = time.perf_counter()
    program(pixels)
    timer.synchronize()
    first = time.perf_counter() - begin
    for _ in range(2):
        program(pixels)
    timer.reset_peak()
    program(pixels)
    timer.synchronize()
    return {"first_s": round(first, 3), "peak_mib": round((timer.peak() - before) / 2**20, 1)}


def in_rounds(
    setting: Setting, programs: dict[str, Program], pixels: Tensor
) -> dict[str, tuple[list[float], list[float]]]:
    """Milliseconds of single calls and, a call, of bursts; the programs in turn, round by round."""
    timer = timer_of(setting)
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in programs}
    calls: dict[str, int] = {}
    for name, program in programs.items():
        ms = timer.elapsed_us(lambda p=program: p(pixels)) / 1e3
        calls[name] = max(1, min(50, round(setting.burst_ms / ms)))
    for _ in range(setting.rounds):
        for name, program in programs.items():
            latencies, bursts = found[name]
            for _ in range(min(LATENCIES, calls[name])):
                timer.synchronize()
                begin = time.perf_counter()
                program(pixels)
                timer.synchronize()
                latencies.append((time.perf_counter() - begin) * 1e3)

            def burst(program: Program = program, count: int = calls[name]) -> None:
                for _ in range(count):
                    program(pixels)

            bursts.append(timer.elapsed_us(burst) / 1e3 / calls[name])
    return found


def cells(setting: Setting) -> Iterator[Cell]:
    """Against transformers early, for little; then torch.compile, whose minutes count, in order of what it tells."""
    dtype = setting.dtypes[0]
    for group in setting.groups:
        if group.model not in setting.end_to_end:
            continue
        order = group.order
        for batch in group.batches:
            name = f"{setting.models[group.model].name} batch {batch}"
            params = dict(key=group.model, batch=batch, dtype=dtype)
            ways = [
                ("transformers", against_transformers, 0.3 if order == 0 else 2.9 + order / 100),
                ("variants", against_each_other, 0.35 if order == 0 else 3.8 + order),
            ]
            for words, run, rank in ways:
                yield Cell("end_to_end", f"{name} {words}", run, params, rank, 8, 90, ours=True)
            for place, rival in enumerate(rivals(setting, batch)):
                # the hardest one is worth more than any candidate of ours
                rank = 2.6 if order == place == 0 else 3.0 + order + place / 4
                yield Cell(
                    "end_to_end", f"{name} {rival.name}", against_compiled, {**params, "rival": rival},
                    rank, rival.seconds, rival.limit, ours=True,
                )  # fmt: skip


def rivals(setting: Setting, batch: int) -> list[Rival]:
    """The most telling first: for one image that is the CUDA graph."""
    if batch == 1:
        return sorted(setting.rivals, key=lambda r: r.mode != "reduce-overhead")
    return list(setting.rivals)
