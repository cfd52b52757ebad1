"""The columns of the page's tables: head, value of a row, and what it means, said once for tables and definitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..results import Case, Results, Row
from .words import accuracy_share, number, percent, times


@dataclass(frozen=True)
class Column:
    head: str
    value: Callable[[Row, Case, Results], str]
    meaning: str


def plain(key: str, digits: int = 4) -> Callable[[Row, Case, Results], str]:
    return lambda row, case, results: number(row.get(key), digits)


def of_copy(row: Row, case: Case, results: Results) -> str:
    peak = results["peaks"].get("copy_gbps")
    return percent(row["gbps"] / peak) if peak and row.get("gbps") else "-"


def share(row: Row, case: Case, results: Results) -> str:
    return number(accuracy_share(row), 3)


COLUMNS = {
    "p50": Column(
        "p50 ms",
        plain("p50_ms"),
        "median time of a call in milliseconds: half of the calls took longer",
    ),
    "p90": Column(
        "p90 ms",
        plain("p90_ms"),
        "one call in ten took longer; one image a call is judged by it",
    ),
    "p99": Column(
        "p99 ms",
        plain("p99_ms"),
        "one call in a hundred took longer; with fewer than a hundred samples it is near the "
        "slowest of them",
    ),
    "spread": Column(
        "spread",
        lambda r, c, _: percent(r.get("spread")),
        "(75% quantile - 25% quantile) / median: how much the times of one program differ among "
        "themselves",
    ),
    "images": Column(
        "images/s",
        plain("images_s"),
        "batch / p50; on a GPU from many calls that are not waited for one by one. More than one "
        "image a call is judged by it",
    ),
    "speed_up": Column(
        "speed-up",
        lambda r, c, _: times(r.get("speed_up")),
        "p50 of the case's baseline / p50 of this program, in the same case and the same run: "
        "above 1 is faster than the baseline",
    ),
    "accuracy": Column(
        "error / allowed",
        share,
        "error against float64 over what the accuracy rule allows in this dtype, the worse of two"
        " measures (largest error, worst row): above 1 a program is inaccurate and is not ranked;"
        " - where the case has no numbers to hold against it",
    ),
    "build": Column(
        "build s",
        plain("build_s", 3),
        "making the program: conversion, export, packing of weights",
    ),
    "first": Column(
        "first call s",
        plain("first_s", 3),
        "the first call, with what is compiled in it",
    ),
    "held": Column(
        "held MiB",
        plain("held_mib"),
        "memory that the program holds between calls, beside the model it was made of: packed "
        "weights, a copy of the model, compiled code, pools of CUDA graphs",
    ),
    "memory": Column(
        "peak MiB",
        plain("peak_mib"),
        "peak memory during a call beside what was there before it, and so without the pools of "
        "CUDA graphs",
    ),
    "launches": Column(
        "launches",
        plain("launches"),
        "kernels that a call launches on a GPU, operators of PyTorch that it runs on a CPU; - if "
        "unknown",
    ),
    "tflops": Column(
        "TFLOP/s",
        plain("tflops"),
        "floating-point operations of the images in images/s",
    ),
    "mfu": Column(
        "MFU",
        lambda r, c, _: percent(r.get("mfu")),
        "model FLOP utilisation: TFLOP/s over the peak that was measured on this machine with a "
        "large matrix product in the same dtype",
    ),
    "nominal": Column(
        "of nominal",
        lambda r, c, _: percent(r.get("mfu_nominal")),
        "TFLOP/s over the peak that the maker states; - where none is known",
    ),
    "gbps": Column(
        "GB/s",
        plain("gbps"),
        "bytes of a call / p50, each operand counted once read and each result once written",
    ),
    "copy": Column(
        "of copy",
        of_copy,
        "GB/s over the bandwidth of a large copy on this machine; above 100% the operands lay in "
        "a cache",
    ),
}

TERMS = {
    "case": (
        "one model (or operation, or block) in one dtype at one batch: what one group of rows is "
        "about; a cell is a case of a whole model"
    ),
    "baseline": "the program that speed-up is against in a case; its own speed-up is 1",
    "best accurate": (
        "first of the accurate programs of a case by what the scenario is judged by; nobody where "
        "the case is disturbed"
    ),
    "scenario": (
        "in MLPerf's terms: single stream, one image a call, judged by p90; offline, more images "
        "a call, judged by images/s"
    ),
    "cache": (
        "warm: the same inputs at each call; cold: more memory than the caches hold is written "
        "before each call"
    ),
    "drift": (
        "median of the baseline after all rounds over its median before, minus 1: what the "
        "machine itself changed by meanwhile"
    ),
    "disturbed": (
        "the run found a reason, given beside the case, not to trust its times. They are shown, "
        "and the case counts for nobody"
    ),
    "inaccurate": (
        "timed, but further from float64 than the accuracy rule allows: shown, and never ranked"
    ),
    "wrong": (
        "a program of ours beyond the accuracy rule: not timed. A case where no other of ours is "
        "accurate counts as lost"
    ),
    "skipped, failed": "could not run here, for the reason given; ended with the error given",
    "accuracy rule": (
        "at most twice as far from the float64 reference as PyTorch's own result in the same "
        "dtype, plus one unit of rounding, in the largest error and in the relative error of the "
        "worst row"
    ),
}

LAYERS = {
    "model": "p50 p90 p99 spread images speed_up accuracy first build held memory mfu launches",
    "operation": "p50 p90 spread speed_up accuracy tflops mfu nominal gbps copy launches",
    "block": "p50 p90 p99 spread speed_up accuracy tflops mfu gbps memory launches",
    "ablation": "p50 p90 spread speed_up accuracy memory launches",
    "end to end": "p50 p90 p99 spread images speed_up accuracy first build held memory",
    "cold start": "p50 p90 speed_up",
}
