"""The results file of the suite, one JSON object, whichever front end has written it:

format    1
machine   the card of the machine (measure.machine)
run       suite, arguments, device ("cpu" or "cuda"), at (UTC), seconds, commit or None, front ("run" or "pytest");
          resumed, where it was: a list of {"at", "commit"} of the runs that went on with it
method    how it was timed: order ("in turn" or "one after another"), pause_ms, least_rounds, seconds (of timing a
          case), spread_bound, drift_bound, share_bound; text: the same in sentences
peaks     dtype -> {"measured_tflops", "nominal_tflops" or None}; and "copy_gbps", the bandwidth of a large copy
cases     a list of

    name       unique: "ViT-B/16-224 tokens fp32 batch 8"
    layer      operation, block, model, ablation, end to end, cold start
    subject    key of registry.SUBJECTS; title: its words ("ViT-B/16-224")
    what       of the layer: the output ("tokens", "pooled", "logits"), the operation ("fc1"), "jpeg to logits"
    dtype      fp32, fp16, bf16
    batch      images a call
    scenario   "single stream" (one image: judged by p90_ms) or "offline" (judged by images_s), in MLPerf's terms
    cache      "warm": the same inputs at each call; "cold": more memory than the caches hold is written before each
    count      of an operation: how often a forward pass has it; else None
    flops      of a call; bytes: each operand read once and each result written once; None where nobody counts them
    baseline   the program that speed_up is against
    rows       in the order they were asked for; see below
    drift      the baseline's median at the end, after all rounds, over its median before, minus 1; None if not timed
    disturbed  "" or why these times are not to be trusted
    clocks     {"before": {...}, "after": {...}}: MHz, W and degrees Celsius as far as the machine tells

A row is one program in one case:

    program    "vit-fast"; ours: whether it is this project's
    status     "ok": accurate and timed. "inaccurate": timed, but beyond the accuracy rule, and so not ranked; never
               for a program of ours, which is not timed then. "wrong": ours, beyond the rule. "skipped": cannot run
               here. "failed": an error
    why        of every status but "ok"
    accuracy   {"error", "allowed", "row_error", "row_allowed"}: by vit_fast.accuracy, against float64; None if the
               case has no numbers to hold against it (cold start)
    build_s    making the program: conversion, export; first_s: its first call, with what it packs or compiles.
               torch.compile on a CPU, whose weights are frozen then, compiles in build_s
    p50_ms p90_ms p99_ms least_ms    quantiles of the samples and the least of them; samples_ms: all, in order. A sample
               is one call; on a CPU the mean of several, where one takes less than method.SAMPLE_MS
    spread     (75% quantile - 25% quantile) / median
    images_s   batch / p50_ms (on a GPU: of many calls that are not waited for)
    speed_up   the baseline's p50_ms over this one's; None without one
    tflops     flops of the images in images_s; mfu: that over the measured peak, mfu_nominal: over the nominal;
               gbps: bytes / p50_ms
    held_mib   memory that the program holds between calls, beside the model it was made of: packed weights, a copy of
               the model, compiled code, arenas, pools of CUDA graphs. On a CPU by the resident memory of the process
    peak_mib   memory during a call beside what was there before it, and so without the pools of CUDA graphs
    launches   kernels that a call launches on a GPU, without copies; operators of PyTorch that it runs on a CPU; None
               if unknown
    parts      cold start: {"import": s, "load": s, "first call": s}; else None

Rows that are not timed have None in the place of every number they lack.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FORMAT = 1
LAYERS = ("operation", "block", "model", "ablation", "end to end", "cold start")
TIMED = ("ok", "inaccurate")
NUMBERS = (
    "build_s", "first_s", "p50_ms", "p90_ms", "p99_ms", "least_ms", "spread", "images_s", "speed_up",
    "tflops", "gbps", "mfu", "mfu_nominal", "held_mib", "peak_mib", "launches",
)  # fmt: skip

# what every case and every row has
CASE = {"name", "layer", "what", "dtype", "batch", "scenario", "baseline", "rows", "disturbed"}
ROW = {"program", "ours", "status", "why", "accuracy", "samples_ms", *NUMBERS}

Row = dict[str, Any]
Case = dict[str, Any]
Results = dict[str, Any]


def read(path: Path) -> Results:
    """A results file. OSError, or ValueError that says why it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    kinds = {"machine": dict, "run": dict, "method": dict, "peaks": dict, "cases": list}
    if not isinstance(data, dict) or not all(isinstance(data.get(k), t) for k, t in kinds.items()):
        raise ValueError(
            f"{path} is not a results file of this suite: expected an object with {', '.join(kinds)}"
        )
    if data.get("format") != FORMAT:
        raise ValueError(f"{path} has format {data.get('format')!r}, expected {FORMAT}")
    for i, case in enumerate(data["cases"]):
        whole = isinstance(case, dict) and case.keys() >= CASE and isinstance(case["rows"], list)
        if not (whole and all(isinstance(r, dict) and r.keys() >= ROW for r in case["rows"])):
            raise ValueError(f"{path}: its case {i} lacks fields that benchmarks/results.py names")
    return data


def write(path: Path, results: Results) -> None:
    """The old file or the new one is there at any moment, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".tmp")
    half.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(half, path)


def commits(results: Results, digits: int = 40) -> str:
    """Of the run and of those that went on with it, or "": of each so many digits."""
    run = results["run"]
    found = [run.get("commit"), *(more.get("commit") for more in run.get("resumed", []))]
    return ", ".join(dict.fromkeys(c[:digits] for c in found if c))


def slug(words: str) -> str:
    return re.sub(r"\W+", "_", words.lower()).strip("_")


def timed(case: Case) -> Iterator[Row]:
    return (row for row in case["rows"] if row["status"] in TIMED)


def row_of(case: Case, program: str) -> Row | None:
    """The row of a program that was timed."""
    return next((row for row in timed(case) if row["program"] == program), None)


def score(case: Case, row: Row) -> float:
    """What programs are ranked by, less is better: p90 latency for one image, time an image for many."""
    if case["scenario"] == "single stream":
        return row["p90_ms"]
    return 1e3 / row["images_s"]


def ranked(case: Case) -> list[Row]:
    """The accurate programs, the best first."""
    return sorted((r for r in case["rows"] if r["status"] == "ok"), key=lambda r: score(case, r))
