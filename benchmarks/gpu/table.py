"""A results file of the GPU program as Markdown, for the README: python -m benchmarks table FILE"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu import digest
from benchmarks.gpu.results import read
from benchmarks.gpu.setting import TOYS
from benchmarks.gpu.summary import DRY
from vit_fast.workload import MODELS


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks table", description=__doc__)
    parser.add_argument("file", type=Path)
    path = parser.parse_args(argv).file
    try:
        data = read(path)
    except (OSError, ValueError) as error:
        parser.error(f"{path}: {error}")
    print("\n".join(markdown(data)))
    return 0


def markdown(data: Mapping[str, Any]) -> Iterator[str]:
    """A line on the machine, then a row for each model and batch; "-" where a rival was not measured.

    A rival's column says how many times its speed ours is. MFU is the share of the rate of a large square product.
    """
    cells, machine = data["cells"], data["machine"]
    if machine["dry_run"]:
        yield f"{DRY[0].upper()}{DRY[1:]}."
        yield ""
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
    own = ["model", "batch", "images/s", "p50 ms", "p99 ms", "MFU", "error / allowed"]
    head = [*own, *(f"× {r}" for r in rivals)]
    yield _row(head)
    yield _row(["---"] * len(head))
    for model, batch in found:
        ours = digest.ours(cells, model, batch)
        mfu = f"{ours['tflops'] / peak:.0%}" if peak else "-"
        error = "WRONG" if ours["wrong"] else f"{ours['error']:.2g} / {ours['allowed']:.2g}"
        times = [f"{ours['images_s']:,.0f}", *(f"{ours[p]:.3f}" for p in ("p50_ms", "p99_ms"))]
        found_here = ratios[model, batch]
        speeds = [f"{found_here[r]:.2f}" if r in found_here else "-" for r in rivals]
        yield _row([{**MODELS, **TOYS}[model].name, str(batch), *times, mfu, error, *speeds])


def _row(entries: list[str]) -> str:
    return f"| {' | '.join(entries)} |"
