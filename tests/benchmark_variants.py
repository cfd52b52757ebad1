"""Results files of other kinds than that of benchmark_results: what reports must stand."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from benchmark_results import PROGRAMS, case, results, untimed

MODELS = (
    "ViT-B/16-224", "ViT-L/16-224", "DeiT-B/16-224", "DINOv2-L/14-518", "DINOv3-ViT-H+/16-224", "CLIP-L/14-336",
    "SigLIP-So400m/14-384",
)  # fmt: skip
OPERATIONS = {
    "patch_embed": (1.8e9, 2e7, 1),
    "layer_norm": (None, 1e7, 25),
    "qkv": (5.6e9, 2.3e7, 12),
    "attention": (9e8, 2e7, 12),
    "proj + residual": (1.9e9, 2.1e7, 12),
    "fc1 + gelu": (7.4e9, 3.4e7, 12),
    "fc2 + residual": (7.4e9, 3.3e7, 12),
    "pooling": (2e7, 5e6, 1),
}


def models(
    titles: Sequence[str],
    dtypes: Mapping[str, float],
    batches: Sequence[int],
    programs: Mapping[str, float],
    ms: float = 210.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The model cases of every title, dtype (with its rate) and batch."""
    draw = random.Random(seed)
    first = next(iter(programs))
    found = []
    for title in titles:
        for dtype, rate in dtypes.items():
            for batch in batches:
                each = {
                    p: ms * (batch**0.9) / s / rate * draw.uniform(0.85, 1.15)
                    for p, s in programs.items()
                }
                found.append(
                    case(
                        "model",
                        title.lower(),
                        title,
                        "tokens",
                        dtype,
                        batch,
                        35e9 * batch,
                        1.7e8 + 1e7 * batch,
                        each,
                        first,
                        draw,
                    )
                )
    return found


def operations(
    title: str, dtype: str, batch: int, counted: bool, tflops: float, seed: int = 0
) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    found = []
    for what, (flops, nbytes, count) in OPERATIONS.items():
        ms = max((flops or 0.0) / tflops / 1e9, nbytes / (tflops * 5e6)) * 1.2
        each = {"PyTorch": ms * batch * 1.4, "vit-fast": ms * batch * draw.uniform(0.7, 1.6)}
        c = case(
            "operation",
            title.lower(),
            title,
            what,
            dtype,
            batch,
            flops and flops * batch,
            nbytes * batch,
            each,
            "PyTorch",
            draw,
        )
        found.append({**c, "count": count} if counted else c)
    return found


def gpu() -> dict[str, Any]:
    """Seven models, three dtypes and five batches on a GPU, a nominal peak beside the measured one."""
    found = results()
    names = dict(
        zip(
            [
                "transformers, eager",
                "transformers, sdpa",
                "torch.compile",
                "torch.compile, max-autotune",
                "TensorRT",
            ],
            (1, 1.3, 1.9, 2.1, 2.6),
        )
    )
    cases = models(
        MODELS,
        {"bf16": 8, "fp16": 8, "fp32": 1},
        (1, 8, 32, 64, 256),
        {**names, "vit-fast": 2.5, "vit-fast, drop-in": 2.4},
        ms=2.0,
    )
    for c in cases:
        if c["dtype"] == "fp32":
            c["rows"][4] = untimed(
                "TensorRT", "failed", "RuntimeError: engine <build> failed & gave up"
            )
        if c["dtype"] == "fp16" and "DINOv2" in c["title"]:
            c["rows"][5] = untimed("vit-fast", "wrong", "largest error 0.5, allowed 0.01")
    cases += operations("ViT-B/16-224", "bf16", 64, True, 400.0)
    cases += operations("ViT-B/16-224", "bf16", 1, True, 200.0)
    found["machine"] |= {"device": "NVIDIA H200", "threads": None, "driver": "580.1"}
    found["run"] |= {"device": "cuda"}
    found["peaks"] = {
        "bf16": {"measured_tflops": 750.0, "nominal_tflops": 989.0},
        "fp16": {"measured_tflops": 740.0, "nominal_tflops": 989.0},
        "fp32": {"measured_tflops": 50.0, "nominal_tflops": 67.0},
        "copy_gbps": 4100.0,
    }
    return {**found, "cases": cases}


def many_programs(
    titles: Sequence[str] = ("ViT-B/16-224",), batches: Sequence[int] = (1, 8)
) -> dict[str, Any]:
    """Seventeen programs, with long names."""
    names = [f"{p}, with an option of number {i}" for i in range(3) for p in list(PROGRAMS)[:5]]
    speeds = {p: 1 + 0.1 * i for i, p in enumerate(names)}
    cases = models(
        titles, {"fp32": 1.0}, batches, {**speeds, "vit-fast": 2.2, "vit-fast, drop-in": 2.1}
    )
    return {**results(), "cases": cases}


def only(*layers: str) -> dict[str, Any]:
    found = results()
    return {**found, "cases": [c for c in found["cases"] if c["layer"] in layers]}


def one_model() -> dict[str, Any]:
    found = only("model")
    return {**found, "cases": found["cases"][:1]}


def counted_operations() -> dict[str, Any]:
    return {**results(), "cases": operations("ViT-B/16-224", "fp32", 8, True, 0.4)}


def nothing_timed() -> dict[str, Any]:
    """Every row skipped."""
    found = results()
    for c in found["cases"]:
        c["rows"] = [
            untimed(r["program"], "skipped", "this machine is too small") for r in c["rows"]
        ]
        c["drift"] = None
    return found


def empty() -> dict[str, Any]:
    return {**results(), "machine": {}, "peaks": {}, "cases": []}
