"""The launch configs that may win: those of the kernel files, by op."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vit_fast.kernels import attention as attention_kernel
from vit_fast.kernels import linear as linear_kernel
from vit_fast.kernels.tuning import Gpu

ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}


def linear(size: tuple[int, int, int], dtype: str, gpu: Gpu) -> tuple[linear_kernel.Config, ...]:
    """For M, N, K in dense memory."""
    itemsize = ITEMSIZE[dtype]
    descriptors = gpu.bulk_copies and itemsize == 2
    return linear_kernel.candidates(*size, itemsize, descriptors, gpu)


def of(op: str, shape: Mapping[str, Any], dtype: str, gpu: Gpu) -> tuple[Any, ...]:
    """For an operation of workload.operations; () where the op has no choice."""
    match op:
        case "linear":
            return linear((shape["M"], shape["N"], shape["K"]), dtype, gpu)
        case "attention":
            Nq, N, D = shape["Nq"], shape["N"], shape["D"]
            return attention_kernel.candidates(Nq, N, D, ITEMSIZE[dtype], gpu)
    return ()


def words(config: Any) -> str:
    """Its fields but for estimates, in a word each."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "rate"}
    return " ".join(f"{name}={value}" for name, value in values.items()).replace(", ", ",")
