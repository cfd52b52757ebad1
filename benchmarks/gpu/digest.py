"""What rows of a results file say together: our times, the rivals', the composed bound."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.gpu.setting import TOYS
from vit_fast.workload import MODELS, operations

Rows = Mapping[str, Mapping[str, Any]]
OURS = "vit-fast"  # as it ships; other ways to run it have this and more for a name
MEASURED = "ok", "wrong"


def end_to_end(cells: Rows) -> Iterator[Mapping[str, Any]]:
    for key, row in cells.items():
        if key.startswith("end_to_end/") and row["status"] in MEASURED:
            yield row


def measure_of(batch: int) -> str:
    """One image: the time until its result is there. More: the time of a call among many."""
    return "p50_ms" if batch == 1 else "burst_ms"


def models_and_batches(cells: Rows) -> list[tuple[str, int]]:
    found = {(row["model"], row["batch"]) for row in end_to_end(cells)}
    return sorted(found)


def rows_of(cells: Rows, model: str, batch: int) -> list[Mapping[str, Any]]:
    return [r for r in end_to_end(cells) if (r["model"], r["batch"]) == (model, batch)]


def ours(cells: Rows, model: str, batch: int) -> Mapping[str, Any]:
    """Our numbers, from the row beside transformers if it is there."""
    rows = rows_of(cells, model, batch)
    row = next((r for r in rows if "transformers, eager" in r["programs"]), rows[0])
    return row["programs"][OURS]


def speed_ups(cells: Rows, model: str, batch: int, others: bool = True) -> dict[str, float]:
    """Rival -> its time over ours, both from the row in which they ran in turn; or so for our own variants."""
    measure, found = measure_of(batch), {}
    for row in rows_of(cells, model, batch):
        for name, numbers in row["programs"].items():
            if name != OURS and name.startswith(OURS) != others:
                found[name] = round(numbers[measure] / row["programs"][OURS][measure], 3)
    return found


def composed_us(cells: Rows, model: str, batch: int) -> tuple[float | None, list[str]]:
    """Sum over a forward pass of the best vendor time at each shape, everything elementwise free; what it lacks.

    LayerNorm and patch embedding: their bytes at the copy's bandwidth. None where a row is missing.
    """
    from benchmarks.gpu.ceilings import bare  # slow to import, and the only thing here that is

    total, lacking = 0.0, []
    dtype = rows_of(cells, model, batch)[0]["dtype"]
    copy = cells.get("ceilings/copy", {})
    for operation in operations({**MODELS, **TOYS}[model], batch):
        if operation.op in ("linear", "gated", "attention"):
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
            if row["kernel"] != "layer_norm":
                yield row["kernel"], key.removeprefix("kernels/"), row["fraction"]
            elif copy:
                yield row["kernel"], key.removeprefix("kernels/"), round(row["gbps"] / copy, 3)


def gemm_tflops(cells: Rows) -> float | None:
    """The rate of the large square product: what utilisation is a share of."""
    found = [r["tflops"] for k, r in cells.items() if k.startswith("ceilings/gemm") and "tflops" in r]  # fmt: skip
    return found[0] if found else None
