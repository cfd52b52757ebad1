"""A results file as Markdown, for the README: python -m benchmarks table FILE"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu import digest
from benchmarks.gpu.setting import TOYS
from vit_fast.workload import MODELS


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks table", description=__doc__)
    parser.add_argument("file", type=Path)
    data = json.loads(parser.parse_args(argv).file.read_text())
    print("\n".join(markdown(data)))
    return 0


def markdown(data: Mapping[str, Any]) -> Iterator[str]:
    """A line on the machine, then a row for each model and batch; "-" where a rival was not measured.

    A rival's column says how many times its speed ours is. MFU is the share of the rate of a large square product.
    """
    cells, machine = data["cells"], data["machine"]
    found = digest.models_and_batches(cells)
    if not found:
        yield "No end-to-end row in this file."
        return
    ratios = {pair: digest.speed_ups(cells, *pair) for pair in found}
    rivals = list(dict.fromkeys(name for r in ratios.values() for name in r))
    peak = digest.gemm_tflops(cells)
    dates = sorted(row["at"][:10] for row in digest.end_to_end(cells))
    dtypes = sorted({row["dtype"] for row in digest.end_to_end(cells)})
    versions = ", ".join(f"{n} {machine[n]}" for n in ("driver", "torch", "triton", "transformers"))
    yield f"{machine['device']}, {versions}, {', '.join(dtypes)}, {dates[0]} to {dates[-1]}."
    yield ""
    head = ["model", "batch", "images/s", "p50 ms", "p99 ms", "MFU", "error / allowed", *(f"× {r}" for r in rivals)]  # fmt: skip
    yield _row(head)
    yield _row(["---"] * len(head))
    for model, batch in found:
        _, ours = digest.best(cells, model, batch)
        mfu = f"{ours['tflops'] / peak:.0%}" if peak else "-"
        error = f"{ours['error']:.2g} / {ours['allowed']:.2g}" if "error" in ours else "WRONG"
        speeds = [f"{ratios[model, batch][r]:.2f}" if r in ratios[model, batch] else "-" for r in rivals]  # fmt: skip
        name = {**MODELS, **TOYS}[model].name
        yield _row([name, str(batch), f"{ours['images_s']:,.0f}", f"{ours['p50_ms']:.3f}", f"{ours['p99_ms']:.3f}", mfu, error, *speeds])  # fmt: skip


def _row(entries: list[str]) -> str:
    return f"| {' | '.join(entries)} |"
