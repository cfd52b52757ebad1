"""Compiles every config of every candidate for sm_90 on a machine without a GPU, and prints what it became.

python -m benchmarks.candidates.check [--only NAME] [--json]

The launchers run on meta tensors against a driver that launches nothing, as in
vit_fast.kernels.static_check, so what is compiled is what a call would compile. Registers are those
of the launch; a warp-specialised kernel hands them round afterwards (setmaxnreg). Exits with 1 if
any config spills, exceeds 227 KB of shared memory, is off wgmma, or has wgmma serialised.
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton import knobs

from vit_fast.kernels.static_check import _TOOLS, _Driver, _serialised
from vit_fast.kernels.tuning import KNOWN

GPU = KNOWN["sm_90"]


@dataclass(frozen=True)
class Built:
    launch: str
    triton: str
    registers: int  # at launch
    handed_out: tuple[int, ...]  # distinct setmaxnreg values
    spill_bytes: int
    smem_bytes: int
    wgmma: int
    copies: int  # bulk copies, both ways
    serialised: str  # ptxas' words, or ""
    overlapped: int  # exponentials that are issued while a product is in flight

    def faults(self) -> list[str]:
        """What keeps this config from being tried; empty is good."""
        found = {
            f"spills {self.spill_bytes} bytes": self.spill_bytes > 0,
            f"takes {self.smem_bytes} of {GPU.smem} bytes of shared memory": self.smem_bytes
            > GPU.smem,
            "has no wgmma": self.wgmma == 0,
            f"has serialised wgmma: {self.serialised}": bool(self.serialised),
            "waits for its products before its exponentials": "flash" in self.launch
            and self.overlapped == 0,
        }
        return [fault for fault, there in found.items() if there]


def _linear_calls(name: str, run: Callable, configs) -> Iterator[tuple[str, Callable]]:
    def t(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def call(M, N, K, activation, full, dtype, config):
        x, w, b = t(M, K, dtype=dtype), t(N, K, dtype=dtype), t(N, dtype=dtype)
        residual = t(M, N, dtype=dtype) if full else None
        run(x, w, b, activation, b if full else None, residual, gpu=GPU, config=config)

    for config in configs:
        for activation, full, dtype in (
            (None, False, torch.bfloat16),
            ("gelu", False, torch.bfloat16),
            ("gelu_tanh", False, torch.bfloat16),
            ("quick_gelu", False, torch.bfloat16),
            ("silu", False, torch.bfloat16),
            (None, True, torch.bfloat16),
            ("gelu", True, torch.float16),
        ):
            epilogue = f"{activation}{' scale residual' if full else ''} {dtype}"
            yield (
                f"{name} {config}: {epilogue}",
                lambda a=activation, f=full, d=dtype, c=config: call(25216, 3072, 768, a, f, d, c),
            )


def _attention_calls(name: str, run: Callable, configs: Callable) -> Iterator:
    def call(D, dtype, config):
        q, k, v = torch.empty((64, 577, 3, 16, D), dtype=dtype, device="meta").unbind(2)
        run(q, k, v, D**-0.5, gpu=GPU, config=config)

    for D, dtype in (
        (64, torch.bfloat16),
        (72, torch.bfloat16),
        (80, torch.float16),
        (96, torch.bfloat16),
        (128, torch.bfloat16),
    ):
        for config in configs(D):
            yield (
                f"{name} {config}: D={D} {dtype}",
                lambda d=D, t=dtype, c=config: call(d, t, c),
            )


def launches() -> Iterator[tuple[str, Callable]]:
    from . import flash_specialised, gemm_cooperative, gemm_pingpong

    yield from _attention_calls(
        flash_specialised.NAME, flash_specialised.run, flash_specialised.configs
    )
    for module in (gemm_pingpong, gemm_cooperative):
        yield from _linear_calls(module.NAME, module.run, module.CONFIGS)


def _overlapped(cubin: Path) -> int:
    """Exponentials between two waits for products, with no product issued between them: the second
    wait is for one that was in flight all along.
    """
    command = [_TOOLS / "nvdisasm", cubin]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    marks = "".join(m[0] for m in re.findall(r"HGMMA|WARPGROUP\.DEPBAR|MUFU\.EX2", sass))
    return sum(map(len, re.findall(r"W(M+)(?=W)", marks)))


def _read(files: dict[str, str], launch: str) -> Built:
    by_suffix = {Path(f).suffix: Path(f) for f in files.values()}
    ptx = by_suffix[".ptx"].read_text()
    usage = subprocess.run(
        [_TOOLS / "cuobjdump", "-res-usage", by_suffix[".cubin"]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return Built(
        launch=launch,
        triton=triton.__version__,
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        handed_out=tuple(
            sorted({int(n) for n in re.findall(r"setmaxnreg\.\S+\s+(\d+);", ptx)}, reverse=True)
        ),
        spill_bytes=int(re.search(r"STACK:(\d+)", usage)[1]),
        smem_bytes=json.loads(by_suffix[".json"].read_text())["shared"],
        wgmma=ptx.count("wgmma.mma_async"),
        copies=ptx.count("cp.async.bulk.tensor"),
        serialised=_serialised(by_suffix[".ptx"], GPU.arch),
        overlapped=_overlapped(by_suffix[".cubin"]),
    )


def compile_all(only: str = "") -> Iterator[Built]:
    """Each config whose launch's name contains `only`, compiled."""
    triton.runtime.driver.set_active(_Driver(GPU.arch))
    built: list[dict[str, str]] = []
    knobs.runtime.kernel_load_end_hook = lambda module, function, name, files, hash: built.append(
        files
    )
    for launch, call in launches():
        if only in launch:
            call()
            yield _read(built.pop(), launch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only launches whose name contains this")
    parser.add_argument("--json", action="store_true", help="one JSON object a config")
    args = parser.parse_args()
    bad = False
    for b in compile_all(args.only):
        if args.json:
            print(json.dumps(dataclasses.asdict(b)), flush=True)
        else:
            print(
                f"{b.launch}: {b.registers} registers at launch, {b.handed_out[:3]} handed out, "
                f"{b.spill_bytes} spilled, {b.smem_bytes / 1024:.1f} KB, {b.wgmma} wgmma, {b.copies} copies, "
                f"{b.overlapped} overlapped exponentials"
                + "".join(f"; FAULT: {f}" for f in b.faults()),
                flush=True,
            )
        bad = bad or bool(b.faults())
    sys.exit(bad)


if __name__ == "__main__":
    main()
