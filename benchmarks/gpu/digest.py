"""What rows of a results file say together: our times, the rivals', the composed bound."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.gpu.setting import TOYS
from vit_fast.workload import MODELS, operations

Rows = Mapping[str, Mapping[str, Any]]
MEASURED = "ok", "wrong"


def end_to_end(cells: Rows) -> Iterator[Mapping[str, Any]]:
    for key, row in cells.items():
        if key.startswith("end-to-end/") and row["status"] in MEASURED:
            yield row


def ours_in(row: Mapping[str, Any], measure: str) -> tuple[str, Mapping[str, Any]]:
    """(name, numbers) of the faster of our ways to run a model in this row."""
    mine = {n: p for n, p in row["programs"].items() if n.startswith("vit-fast") and "drop-in" not in n}  # fmt: skip
    name = min(mine, key=lambda n: mine[n][measure])
    return name, mine[name]


def measure_of(batch: int) -> str:
    """One image: the time until its result is there. More: the time of a call among many."""
    return "p50_ms" if batch == 1 else "burst_ms"


def models_and_batches(cells: Rows) -> list[tuple[str, int]]:
    found = {(row["model"], row["batch"]) for row in end_to_end(cells)}
    return sorted(found)


def rows_of(cells: Rows, model: str, batch: int) -> list[Mapping[str, Any]]:
    return [r for r in end_to_end(cells) if (r["model"], r["batch"]) == (model, batch)]


def best(cells: Rows, model: str, batch: int) -> tuple[str, Mapping[str, Any]]:
    """Ours as measured beside transformers, else in the first row of this model and batch."""
    rows = rows_of(cells, model, batch)
    row = next((r for r in rows if "transformers, eager" in r["programs"]), rows[0])
    return ours_in(row, measure_of(batch))


def speed_ups(cells: Rows, model: str, batch: int) -> dict[str, float]:
    """Rival -> its time over ours, both from the row in which they ran in turn."""
    measure, found = measure_of(batch), {}
    for row in rows_of(cells, model, batch):
        ours = ours_in(row, measure)[1][measure]
        for name, numbers in row["programs"].items():
            if not name.startswith("vit-fast"):
                found[name] = round(numbers[measure] / ours, 3)
    return found


def composed_us(cells: Rows, model: str, batch: int, dtype: str) -> tuple[float | None, list[str]]:
    """Sum over a forward pass of the best vendor time at each shape, everything elementwise free; what it lacks.

    LayerNorm and patch embedding: their bytes at the copy's bandwidth. None where a row is missing.
    """
    from benchmarks.gpu.ceilings import bare

    total, lacking = 0.0, []
    copy = cells.get("ceilings/copy", {})
    for operation in operations({**MODELS, **TOYS}[model], batch):
        if operation.op in ("linear", "attention"):
            key = f"ceilings/{bare(operation, dtype)}"
            us = best_us(cells[key]) if "us" in cells.get(key, {}) else None
        else:
            key = "ceilings/copy"
            us = operation.bytes / copy["gbps"] / 1e3 if "gbps" in copy else None
        if us is None:
            lacking.append(key)
        else:
            total += operation.count * us
    return (None if lacking else total), lacking


def best_us(row: Mapping[str, Any]) -> float:
    return min(us for name, us in row["us"].items() if name != "again")


def fractions(cells: Rows) -> Iterator[tuple[str, str, float]]:
    """(op, label, fraction) of each kernel: of the vendor's best time, or for LayerNorm of the copy's rate."""
    copy = cells.get("ceilings/copy", {}).get("gbps")
    for key, row in cells.items():
        if key.startswith("kernels/") and "fraction" in row:
            if row["op"] != "layer_norm":
                yield row["op"], key.removeprefix("kernels/"), row["fraction"]
            elif copy:
                yield row["op"], key.removeprefix("kernels/"), round(row["gbps"] / copy, 3)


def gemm_tflops(cells: Rows) -> float | None:
    """The rate of the large square product: what utilisation is a share of."""
    found = [r["tflops"] for k, r in cells.items() if k.startswith("ceilings/gemm") and "tflops" in r]  # fmt: skip
    return found[0] if found else None
