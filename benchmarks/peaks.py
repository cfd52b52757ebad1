"""What this device reaches at best: matrix products in each dtype, and a copy. The roofs of the roofline."""

import time
from collections.abc import Callable

import torch

from vit_fast import onednn
from vit_fast.cuda_timer import elapsed_us

from .hardware import GPUS
from .task import DTYPES

SIZE = {"cpu": 2048, "cuda": 8192}
COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}  # bytes
REPEATS = 8


def peaks(device: torch.device, dtypes: set[str]) -> dict[str, object]:
    """The "peaks" of results.py."""
    found: dict[str, object] = {
        dtype: {
            "measured_tflops": products(device, DTYPES[dtype]),
            "nominal_tflops": nominal(device, dtype),
        }
        for dtype in sorted(dtypes)
    }
    x = torch.ones(copied(device) // 4, device=device)
    y = torch.zeros_like(x)
    found["copy_gbps"] = 2 * x.nbytes / least_ms(lambda: y.copy_(x), device) / 1e6
    return found


def copied(device: torch.device) -> int:
    """Bytes of a copy, of which there are two: on a GPU half of what is free at most."""
    if device.type != "cuda":
        return COPIED[device.type]
    return min(COPIED["cuda"], torch.cuda.mem_get_info(device)[0] // 4)


def products(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a square product, the best of the libraries at hand."""
    n = SIZE[device.type]
    x, w = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    ways: list[Callable[[], object]] = [lambda: torch.mm(x, w)]
    if device.type == "cpu" and not onednn.why_not(dtype):
        packed = onednn.pack(w)
        ways.append(lambda: onednn.onednn_linear(x, packed))
    return 2 * n**3 / min(least_ms(way, device) for way in ways) / 1e9


def nominal(device: torch.device, dtype: str) -> float | None:
    """The data sheet's, dense; None for a GPU that nobody has entered, and for processors, whose clock is not told."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = {gpu.device: gpu for gpu in GPUS.values()}
    if name not in known:
        return None
    return known[name].fp32_tflops if dtype == "fp32" else known[name].tensor_tflops


def least_ms(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(REPEATS):
        if device.type == "cuda":
            times.append(elapsed_us(call, call) / 1e3)
            continue
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return min(times)
