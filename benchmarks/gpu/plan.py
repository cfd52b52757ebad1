"""All cells, and what the program has to know of the machine before it can list them."""

import platform
from dataclasses import asdict
from typing import Any

import torch
import transformers
import triton

import vit_fast
from benchmarks.gpu import (
    candidates,
    ceilings,
    correctness,
    end_to_end,
    families,
    kernels,
    models,
)
from benchmarks.gpu.cells import Cell
from benchmarks.gpu.results import smi, source
from benchmarks.gpu.setting import Setting
from benchmarks.measure import cpu_name
from vit_fast.kernels.tuning import Gpu, gpu_of


def machine(setting: Setting) -> dict[str, Any]:
    """Of the process that asks, which on a GPU is a worker: a context in the parent would outlive every fault."""
    cuda = setting.device == "cuda"
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    return {
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        "driver": smi().get("driver_version") if cuda else None,
        "memory_mib": torch.cuda.get_device_properties(0).total_memory >> 20 if cuda else None,
        "gpu": asdict(gpu_of(device)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "vit_fast": vit_fast.__version__,
        "source": source(),
        "dry_run": setting.dry,
    }


MACHINE = Cell("machine", "card", machine, seconds=0, limit=120)


def cells(setting: Setting, gpu: Gpu) -> list[Cell]:
    """In the order in which they are to run. ValueError where two have one name."""
    found = [
        *correctness.cells(setting, gpu),
        *models.cells(setting),
        *families.cells(setting),
        *ceilings.cells(setting),
        *kernels.cells(setting),
        *candidates.cells(setting, gpu),
        *end_to_end.cells(setting),
    ]
    twice = {c.key for c in found if [o.key for o in found].count(c.key) > 1} if setting.dry else ()
    if twice:
        raise ValueError(f"cells of one name: {', '.join(sorted(twice))}")
    return found
