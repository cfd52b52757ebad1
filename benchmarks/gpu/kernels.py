"""Each of our kernels against its ceiling: same shape, same inputs, in turn."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.gpu.ceilings import by_name, guess_us, rates, rotated, shapes
from benchmarks.gpu.cells import Cell
from benchmarks.gpu.programs import KERNELS, check, inputs, label, missing, vendor
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timing import digits, in_turn_us, timer_of
from vit_fast.workload import Operation, operations

OURS = "vit-fast"
SEPARATE = "cuBLAS, the rest apart"


def programs_of(op: str, arguments: tuple) -> dict[str, Any]:
    """Ours; the vendor's; and for a GEMM the vendor's with what comes after it in passes of their own."""
    kernel = KERNELS[op]
    found = {OURS: lambda: kernel.launch(*arguments), **vendor(op, arguments)}
    if op in ("linear", "linear_norm", "gated"):
        found[SEPARATE] = lambda: kernel.torch(*arguments)
    return found


def against_ceiling(
    setting: Setting, operation: Operation, dtype: str, model: str, batch: int
) -> dict[str, Any]:
    """Accuracy at this shape, then the times. `fraction`: the fastest bare vendor program's time over ours.

    model and batch are the first whose forward pass has the shape, as its operation `op`.
    """
    arguments = rotated(setting, operation, dtype)
    accuracy = check(operation.op, arguments[0], KERNELS[operation.op].launch(*arguments[0]))
    programs = by_name([programs_of(operation.op, a) for a in arguments])
    programs = {n: calls for n, calls in programs.items() if n == OURS or not missing(calls[0])}
    us = in_turn_us(setting, programs, guess_us(operation))
    bare = [t for name, t in us.items() if name not in (OURS, SEPARATE, "again")]
    ours = us[OURS]
    row = {
        **rates(operation, us),
        "model": model,
        "batch": batch,
        "op": operation.name,
        "dtype": dtype,
        "ms": ours / 1e3,
        "tflops": digits(operation.flops / ours / 1e6),
        "gbps": digits(operation.bytes / ours / 1e3),
        "fraction": round(min(bare) / ours, 3),
    }
    rate = f"{row['tflops']} TFLOP/s" if operation.flops else f"{row['gbps']} GB/s"
    says = f"{ours} us, {rate}, {row['fraction']:.0%} of the ceiling"
    return {**row, **accuracy, "says": says}


def host_us(setting: Setting, dtype: str) -> dict[str, Any]:
    """What a launch costs the host, microseconds: calls in a row at batch 1, none of them waited for."""
    timer, found = timer_of(setting), {}
    for operation in operations(setting.main, 1):
        arguments = inputs(setting, operation.op, operation.shape, dtype)
        programs = programs_of(operation.op, arguments)
        if operation.op == "attention":
            # not by backend: to choose one costs the host more than the call
            kernel = KERNELS[operation.op]
            programs = {OURS: programs[OURS], "PyTorch": lambda k=kernel, a=arguments: k.torch(*a)}
        for name, call in programs.items():
            if name != OURS and missing(call):
                continue
            timer.synchronize()
            begin = time.perf_counter()
            for _ in range(setting.chain):
                call()
            found[f"{operation.name}, {name}"] = round(
                (time.perf_counter() - begin) / setting.chain * 1e6, 2
            )
            timer.synchronize()
    return {"host_us": found}


def cells(setting: Setting) -> Iterator[Cell]:
    dtype = setting.dtypes[0]
    yield Cell("kernels", f"host time a launch {dtype}", host_us, dict(dtype=dtype), 2.3, ours=True)
    for need in shapes(setting):
        yield _cell(need.name, need.operation, dtype, need.model, need.batch, 2.4 + need.order)
    group = setting.groups[0]
    for batch in group.batches:
        images = next(operations(setting.main, batch, uint8=True))
        images = replace(images, name="patch_embed of bytes")
        yield _cell(label(images, dtype), images, dtype, group.model, batch, 2.5)


def _cell(name: str, operation: Operation, dtype: str, model: str, batch: int, rank: float) -> Cell:
    params = dict(operation=operation, dtype=dtype, model=model, batch=batch)
    return Cell("kernels", name, against_ceiling, params, rank, ours=True)
