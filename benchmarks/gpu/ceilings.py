"""What the vendor's libraries and the machine itself reach: nothing of ours is in these rows."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.cells import Cell
from benchmarks.gpu.programs import inputs, label, missing, vendor
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timing import digits, in_turn_us, sets, spread, timer_of
from vit_fast.workload import Operation, operations

# for graph lengths only: what a GPU of this class does, roughly
GUESS_FLOPS, GUESS_BYTES, GUESS_LAUNCH_US = 5e14, 3e12, 2.0


def guess_us(operation: Operation) -> float:
    return max(operation.flops / GUESS_FLOPS, operation.bytes / GUESS_BYTES) * 1e6 + GUESS_LAUNCH_US


def rates(operation: Operation, us: dict[str, float]) -> dict[str, Any]:
    """The row of these times, and what the fastest program's come to."""
    best = min((name for name in us if name != "again"), key=us.__getitem__)
    return {
        "us": us,
        "best": best,
        "spread": spread(us),
        "best_tflops": digits(operation.flops / us[best] / 1e6),
        "best_gbps": digits(operation.bytes / us[best] / 1e3),
        "kernel": operation.op,
        "shape": dict(operation.shape),
        "state": "cold",
    }


def rotated(setting: Setting, operation: Operation, dtype: str) -> list[tuple]:
    """Sets of inputs that together are several times the L2 cache."""
    count = sets(setting, operation.bytes)
    return [
        inputs(setting, operation.op, operation.shape, dtype, seed=seed) for seed in range(count)
    ]


def by_name(programs: list[dict[str, Callable]]) -> dict[str, list[Callable]]:
    """Each program's calls over all sets of inputs."""
    return {name: [p[name] for p in programs] for name in programs[0]}


def operation_us(setting: Setting, operation: Operation, dtype: str) -> dict[str, Any]:
    programs = by_name([vendor(operation.op, a) for a in rotated(setting, operation, dtype)])
    without = {name: why for name, calls in programs.items() if (why := missing(calls[0]))}
    programs = {name: calls for name, calls in programs.items() if name not in without}
    row = rates(operation, in_turn_us(setting, programs, guess_us(operation)))
    best = row["best"]
    rate = f"{row['best_tflops']} TFLOP/s" if operation.flops else f"{row['best_gbps']} GB/s"
    return {**row, "missing": without, "says": f"{best} {row['us'][best]} us, {rate}"}


def gemm(setting: Setting, dtype: str) -> dict[str, Any]:
    """A square product, large enough that nothing but the matrix units counts."""
    n = setting.gemm
    shape = dict(M=n, N=n, K=n, activation=None, residual=False)
    square = Operation("gemm", "linear", 1, shape, 2.0 * n**3, 6.0 * n**2)
    row = operation_us(setting, square, dtype)
    return {**row, "tflops": row["best_tflops"]}


def copy(setting: Setting) -> dict[str, Any]:
    """Bytes read and written by a device-to-device copy, GB/s."""
    x = torch.randint(0, 256, (setting.copy_bytes,), dtype=torch.uint8, device=setting.device)
    y = torch.empty_like(x)
    us = in_turn_us(setting, {"copy": [lambda: y.copy_(x)]}, 2 * setting.copy_bytes / 4e6)
    gbps = digits(2 * setting.copy_bytes / us["copy"] / 1e3)
    return {"us": us, "spread": spread(us), "gbps": gbps, "says": f"{gbps} GB/s"}


def launch_gap(setting: Setting) -> dict[str, Any]:
    """Microseconds from one tiny kernel to the next: in a graph, and launched one by one by the host."""
    x = torch.randn(64, device=setting.device)
    y = torch.randn(64, device=setting.device)
    calls = [lambda: y.add_(x)] * setting.chain
    us = in_turn_us(setting, {"in a graph": calls}, 2.0)

    def eagerly() -> None:
        for call in calls:
            call()

    timer = timer_of(setting)
    eager = [timer.elapsed_us(eagerly) for _ in range(3)]
    us["by the host"] = round(min(eager) / len(calls), 4)
    return {"us": us, "spread": spread(us), "says": f"{us['in a graph']} us a launch in a graph"}


class Need(NamedTuple):
    """A shape, where it is first needed; name: its label in the main dtype."""

    order: int
    name: str
    operation: Operation
    model: str
    batch: int


def shapes(setting: Setting) -> Iterator[Need]:
    """Each shape of the timed models once."""
    seen = set()
    for group in setting.groups:
        for batch in group.batches:
            for operation in _with_norms(operations(setting.models[group.model], batch)):
                name = label(operation, setting.dtypes[0])
                if name not in seen:
                    seen.add(name)
                    yield Need(group.order, name, operation, group.model, batch)


def _with_norms(forward: Iterable[Operation]) -> Iterator[Operation]:
    """With each product that adds a residual also the one that LayerNorm follows, which is ours to fuse."""
    for o in forward:
        yield o
        if o.op == "linear" and o.shape["residual"]:
            shape = {name: o.shape[name] for name in "MNK"}
            moved = o.bytes + 2 * shape["M"] * shape["N"]
            yield Operation(f"{o.name} and norm", "linear_norm", o.count, shape, o.flops, moved)


def bare(operation: Operation, dtype: str) -> str:
    """The label of what the vendor is asked for: a GEMM without its epilogue."""
    epilogue = operation.shape.keys() & {"activation", "residual"}
    shape = {**operation.shape, **dict.fromkeys(epilogue)}
    return label(Operation("", operation.op, 1, shape, 0, 0), dtype)


def cells(setting: Setting) -> Iterator[Cell]:
    dtype, seen = setting.dtypes[0], set()
    machine = {"copy": (copy, {}), "launch gap": (launch_gap, {})}
    machine[f"gemm {setting.gemm} {dtype}"] = (gemm, dict(dtype=dtype))
    for name, (run, params) in machine.items():
        yield Cell("ceilings", name, run, params, 0.2, vendor=True)
    for need in shapes(setting):
        operation, name = need.operation, bare(need.operation, dtype)
        if operation.op in ("linear", "gated", "attention") and name not in seen:
            seen.add(name)
            params = dict(operation=operation, dtype=dtype)
            yield Cell("ceilings", name, operation_us, params, 2.0 + need.order, vendor=True)
