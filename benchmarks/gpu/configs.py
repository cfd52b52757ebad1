"""The launch configs that may win: those of the kernel files, by op."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vit_fast.kernels import attention_tiles, linear_tiles
from vit_fast.kernels.tuning import Gpu

ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}


def linear(size: tuple[int, int, int], dtype: str, gpu: Gpu) -> tuple[linear_tiles.Config, ...]:
    """For M, N, K in dense memory."""
    itemsize = ITEMSIZE[dtype]
    return linear_tiles.candidates(*size, itemsize, gpu.bulk_copies and itemsize == 2, gpu)


def of(op: str, shape: Mapping[str, Any], dtype: str, gpu: Gpu) -> tuple[Any, ...]:
    """For an operation of a forward pass; () where the op has no choice."""
    itemsize = ITEMSIZE[dtype]
    match op:
        case "linear":
            return linear((shape["M"], shape["N"], shape["K"]), dtype, gpu)
        case "linear_norm":
            descriptors = gpu.bulk_copies and itemsize == 2
            return linear_tiles.split_candidates(shape["K"], itemsize, descriptors)
        case "attention":
            size = shape["Nq"], shape["N"], shape["D"]
            found = attention_tiles.candidates(*size, itemsize, gpu)
            # a program takes so many heads of one image
            return tuple(c for c in found if shape["H"] % c.heads == 0)
    return ()


def words(config: Any) -> str:
    """Its fields that are not at their defaults, a word each."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    own = [f"{f.name}={values[f.name]}" for f in fields(config) if values[f.name] != f.default]
    return " ".join(own).replace(", ", ",")
