"""Predicted times beside those that a results file of the GPU program holds."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .prediction import Forecast

Found = Mapping[tuple[str, int], "Forecast"]  # by name of the model and batch
MISS = 0.15  # a prediction further off than this has to be explained in the log


@dataclass(frozen=True)
class Comparison:
    cell: str
    predicted_ms: float
    measured_ms: float

    @property
    def off(self) -> float:
        """How much longer it took than predicted, as a share of the prediction."""
        return self.measured_ms / self.predicted_ms - 1

    @property
    def miss(self) -> bool:
        return abs(self.off) > MISS


def compare(
    found: Found, results: Mapping[str, object], dtype: str, ships: bool = True
) -> list[Comparison]:
    """Predictions beside the cells of our own kernels and models that a results file holds.

    A row with model, batch and ms, in the section "kernels" also with op (the name of a workload.Operation), is a
    time of ours; rows of a vendor, of another dtype, and those that did not come out right are left alone. A kernel's
    ms is one launch among many, so one launch gap is part of it. A row with programs also holds our variants, and the
    one that was predicted counts; ms, and single kernels, only where the prediction `ships`: is of no other way to run
    a model than the one that runs by itself. ValueError if `results` has no "cells".
    """
    lines = []
    for row in rows(results):
        f = found.get((row.get("model"), row.get("batch")))
        right = row.get("status", "ok") == "ok" and not row.get("vendor")
        if f is None or not right or row.get("dtype", dtype) != dtype:
            continue
        where = f"{row['model']} batch {row['batch']}"
        variant = row.get("programs", {}).get(f"vit-fast, {f.way}")
        if variant is not None and row["section"] == "end_to_end":
            words = f"{where}, {f.way}"
            lines.append(Comparison(words, f.time_us / 1e3, variant["burst_ms"]))
        if "ms" not in row or not ships:
            continue
        if row["section"] == "end_to_end":
            lines.append(Comparison(where, f.time_us / 1e3, row["ms"]))
        elif row["section"] == "kernels":
            for k in f.kernels:
                if k.name == row["op"]:
                    one = (k.time_us + k.launches * f.gap_us) / 1e3
                    lines.append(Comparison(f"{where} {k.name}", one, row["ms"]))
    return lines


def rows(results: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """The cells of a results file: a list of rows, or "section/name" -> row."""
    cells = results.get("cells")
    if isinstance(cells, Mapping):
        yield from ({"section": key.partition("/")[0]} | row for key, row in cells.items())
    elif isinstance(cells, list):
        yield from cells
    else:
        keys = ", ".join(sorted(results)) or "nothing"
        raise ValueError(f'a results file of the GPU program has "cells", this one has {keys}')


def comparison_lines(comparisons: Iterable[Comparison]) -> Iterator[str]:
    yield "\npredicted beside measured, ms"
    for c in comparisons:
        flag = f"   off by more than {MISS:.0%}: the log says why" if c.miss else ""
        yield f"  {c.cell:<28} {c.predicted_ms:>9.4f} {c.measured_ms:>9.4f}  {c.off:>+6.0%}{flag}"
