"""A results file of the suite, made up: what reports are tested on."""

import random
from typing import Any

from benchmarks.results import FORMAT, NUMBERS

PROGRAMS = {
    "transformers, eager": 1.0,
    "transformers, sdpa": 1.05,
    "torch.compile": 1.1,
    "ONNX Runtime": 2.0,
    "OpenVINO": 2.3,
    "vit-fast": 2.4,
}


def row(program: str, p50: float, case: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    # a stream of its own: times do not change with what accuracy draws
    error = random.Random(f"{program} {case['name']}").uniform(1e-6, 8e-6)
    samples = sorted(round(p50 * draw.uniform(0.98, 1.04), 4) for _ in range(20))
    tflops = case["flops"] / p50 / 1e9 if case["flops"] else None
    return {
        "program": program,
        "ours": program.startswith("vit-fast"),
        "status": "ok",
        "why": "",
        "accuracy": {"error": error, "allowed": 9e-6, "row_error": 1e-6, "row_allowed": 4e-6},
        "build_s": 1.5,
        "first_s": 0.4,
        "p50_ms": p50,
        "p90_ms": samples[17],
        "p99_ms": samples[19],
        "least_ms": samples[0],
        "samples_ms": samples,
        "spread": 0.02,
        "images_s": case["batch"] / p50 * 1e3,
        "speed_up": None,
        "tflops": tflops,
        "gbps": case["bytes"] / p50 / 1e6 if case["bytes"] else None,
        "mfu": tflops / 0.5 if tflops else None,
        "mfu_nominal": None,
        "held_mib": 340.0,
        "peak_mib": 40.0,
        "launches": 161,
        "parts": None,
    }


def untimed(program: str, status: str, why: str) -> dict[str, Any]:
    return {
        "program": program,
        "ours": program.startswith("vit-fast"),
        "status": status,
        "why": why,
        "accuracy": None,
        "samples_ms": [],
        "parts": None,
        **dict.fromkeys(NUMBERS),
    }


def case(
    layer: str,
    subject: str,
    title: str,
    what: str,
    dtype: str,
    batch: int,
    flops: float | None,
    nbytes: float | None,
    ms: dict[str, float],
    baseline: str,
    draw: random.Random,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": f"{title} {what} {dtype} batch {batch}",
        "layer": layer,
        "subject": subject,
        "title": title,
        "what": what,
        "dtype": dtype,
        "batch": batch,
        "flops": flops,
        "bytes": nbytes,
        "scenario": "single stream" if batch == 1 else "offline",
        "cache": "warm",
        "baseline": baseline,
        "drift": 0.004,
        "disturbed": "",
        "clocks": {"before": {"mhz": 2600}, "after": {"mhz": 2600}},
    }
    found["rows"] = [row(program, t, found, draw) for program, t in ms.items()]
    first = next(r for r in found["rows"] if r["program"] == baseline)
    for r in found["rows"]:
        r["speed_up"] = first["p50_ms"] / r["p50_ms"]
    return found


def results(seed: int = 0) -> dict[str, Any]:
    draw = random.Random(seed)
    cases = []
    subjects = {
        "vit-b-16": "ViT-B/16-224",
        "siglip-b-16": "SigLIP-B/16-224",
        "dinov2-b-14": "DINOv2-B/14-224",
    }
    for subject, title in subjects.items():
        for dtype, rate in (("fp32", 1.0), ("bf16", 2.2)):
            for batch in (1, 8):
                ms = {
                    p: 210 * batch / s / rate * draw.uniform(0.9, 1.1) for p, s in PROGRAMS.items()
                }
                c = case(
                    "model",
                    subject,
                    title,
                    "tokens",
                    dtype,
                    batch,
                    35e9 * batch,
                    4e8,
                    ms,
                    "transformers, eager",
                    draw,
                )
                if dtype == "bf16":
                    c["rows"][3] = untimed(
                        "ONNX Runtime", "skipped", "ONNX Runtime's CPU provider has no bf16 kernels"
                    )
                    c["rows"][4].update(status="inaccurate", why="largest error 0.3, allowed 0.1")
                    c["rows"][4]["accuracy"].update(error=0.3, allowed=0.1)
                cases.append(c)
    cases[0]["rows"].append(untimed("timm, torch.compile", "skipped", "timm is not installed"))
    cases[1]["disturbed"] = "other processes took 14% of the processor"
    kinds = [
        ("qkv", 5.6e9, 2e7),
        ("attention", 9e8, 2e7),
        ("fc1", 7.4e9, 3.4e7),
        ("layer_norm", None, 1e7),
    ]
    for what, flops, nbytes in kinds:
        ms = {"PyTorch": 30.0, "vit-fast": 16.0}
        cases.append(
            case(
                "operation",
                "vit-b-16",
                "ViT-B/16-224",
                what,
                "fp32",
                8,
                flops,
                nbytes,
                ms,
                "PyTorch",
                draw,
            )
        )
    steps = {
        "transformers, eager": 1600.0,
        "PyTorch operations": 1500.0,
        "+ linear": 820.0,
        "+ packed weights": 760.0,
        "+ attention": 640.0,
    }
    cases.append(
        case(
            "ablation",
            "vit-b-16",
            "ViT-B/16-224",
            "tokens",
            "fp32",
            8,
            2.8e11,
            4e8,
            steps,
            "transformers, eager",
            draw,
        )
    )
    ms = {"transformers": 260.0, "vit-fast": 120.0}
    cases.append(
        case(
            "end to end",
            "vit-b-16",
            "ViT-B/16-224",
            "jpeg to logits",
            "fp32",
            1,
            3.5e10,
            None,
            ms,
            "transformers",
            draw,
        )
    )
    cold = case(
        "cold start",
        "vit-b-16",
        "ViT-B/16-224",
        "first answer",
        "fp32",
        1,
        None,
        None,
        {"transformers, sdpa": 5200.0, "vit-fast": 5600.0},
        "transformers, sdpa",
        draw,
    )
    for r in cold["rows"]:
        r.update(
            accuracy=None,
            peak_mib=None,
            launches=None,
            parts={"import": 3.1, "load": 1.5, "first call": 0.6},
        )
    cases.append(cold)
    return {
        "format": FORMAT,
        "machine": {
            "device": "A Processor",
            "processor": "family 26, model 2",
            "threads": 2,
            "capability": "AVX512",
            "python": "3.11.0",
            "torch": "2.13.0+cpu",
            "transformers": "5.23.0",
            "vit_fast": "0.1.0",
            "rivals": {"onnxruntime": "1.31.1", "openvino": "2026.4.1", "timm": None},
        },
        "run": {
            "suite": "full",
            "arguments": "--suite full",
            "device": "cpu",
            "at": "2026-11-21T12:00:00Z",
            "seconds": 900.0,
            "commit": "abc",
            "front": "run",
        },
        "method": {
            "order": "in turn",
            "pause_ms": 20,
            "least_rounds": 5,
            "seconds": 20.0,
            "spread_bound": 0.1,
            "drift_bound": 0.05,
            "share_bound": 0.05,
            "text": "Programs run in turn, round by round.",
        },
        "peaks": {
            "fp32": {"measured_tflops": 0.5, "nominal_tflops": None},
            "bf16": {"measured_tflops": 1.0, "nominal_tflops": None},
            "copy_gbps": 40.0,
        },
        "cases": cases,
    }
