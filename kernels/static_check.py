"""Compiles the launches that ship, for a named GPU on a machine without one, and reads the machine
code.

python -m vit_fast.kernels.static_check --arch sm_90 [--all]        one JSON object a kernel, as it
is compiled

The real launchers run, on meta tensors, against a driver that knows the GPU's name and launches
nothing: what is compiled is what a user's call would compile, specialised in the same way. It takes
a process of its own, because Triton cannot compile where TRITON_INTERPRET is set; `run` starts one.
Registers, spills and shared memory come from the cubin; matrix instructions and bulk copies are
counted in the PTX; ptxas says when it had to serialise wgmma.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas

from .static_launches import launches
from .tuning import KNOWN

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_RESERVED = 1024  # bytes of shared memory that the system takes of each block's
# no matrix products in them
_ROWS = ("_layer_norm_kernel", "_row_statistics_kernel", "_sum_norm_kernel", "epilogue_kernel")
_SHOWN = re.compile(r"BLOCK_|SLICES|C\d$|W\d$|TAIL_N|^[DPK]$|UINT8|ACTIVATION")

# what touches global memory in PTX, but for hints to the L2 cache
_ACCESS = re.compile(
    r"^\s*(?:@\S+ )?(?:(?:ld|st)\.global|cp\.async(?!\.bulk\.prefetch)|cp\.reduce|atom|red)\b", re.M
)


@dataclass(frozen=True)
class Compiled:
    arch: str
    triton: str
    launch: str  # the launch that needed it
    kernel: str
    config: str
    dtype: str
    registers: int
    spill_bytes: int
    smem_bytes: int
    smem_limit: int
    matrix: str  # the matrix instruction, or "none"
    bulk_copies: int
    serialised: str  # ptxas' words, or ""
    starts_early: bool = False  # launched before the kernel in front has ended: dependent.py
    waits: int = 0  # griddepcontrol.wait in it
    early: int = 0  # loads and stores of global memory before the first of these
    together: int = 1  # blocks that a multiprocessor is to hold, by the bound on registers

    def faults(self) -> list[str]:
        """What keeps this kernel from shipping; empty is good."""
        half = self.dtype != "fp32" and self.kernel not in _ROWS
        block_m = re.search(r"BLOCK_M=(\d+)", self.config)
        # wgmma and tcgen05 need 64 rows; smaller tiles go through mma.sync
        wide = half and int(block_m[1]) >= 64 and KNOWN[self.arch].bulk_copies
        found = {
            f"spills {self.spill_bytes} bytes": self.spill_bytes > 0,
            f"takes {self.smem_bytes} of {self.smem_limit} bytes of shared memory": self.smem_bytes
            > self.smem_limit,
            "is off the matrix unit": half and self.matrix == "none",
            "rounds fp32 to TF32": self.dtype == "fp32" and self.matrix != "none",
            f"uses {self.matrix} for a wide tile": wide and self.matrix == "mma.sync",
            f"takes too much shared memory for {self.together} blocks a multiprocessor": self.together
            * (self.smem_bytes + _RESERVED)
            > self.smem_limit + _RESERVED,
            "starts early and does not wait for the kernel in front": self.starts_early
            and not self.waits,
            "starts early and touches memory before it waits": self.starts_early and self.early > 0,
            f"has serialised wgmma: {self.serialised}": bool(self.serialised),
        }
        return [fault for fault, there in found.items() if there]


class _Driver:
    """What Triton asks of a driver, for a GPU that is not there."""

    class utils:
        @staticmethod
        def get_device_properties(device: int) -> dict[str, int]:
            # no limit here: a configuration that is too large is reported, not refused
            return {"max_shared_mem": 1 << 30}

        @staticmethod
        def load_binary(name, kernel, shared, device):
            return 1, 1, 0, 0, 1024

        @staticmethod
        def unload_module(module) -> None:
            pass

    def __init__(self, arch: int):
        self.arch = arch
        self.sources = []

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def launcher_cls(self, source, metadata) -> Callable:
        self.sources.append(source)
        return lambda *args: None


def _serialised(ptx: Path, arch: int) -> str:
    """ptxas' warnings that it had to serialise wgmma (C7510 and its neighbours), or ""."""
    command = [get_ptxas(arch).path, f"-arch=sm_{arch}a", ptx, "-o", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return " ".join(sorted(set(re.findall(r"\(C75\d\d\)", done.stdout + done.stderr))))


def accesses(ptx: str) -> int:
    """Loads and stores of global memory; hints to the L2 cache are none."""
    return len(_ACCESS.findall(ptx))


def _together(warps: int, maxnreg: int | None) -> int:
    """Blocks of a multiprocessor for which the registers of each were bounded."""
    return 65536 // (32 * warps * maxnreg) if maxnreg and maxnreg < 255 else 1


def _read(source, files: dict[str, str], launch: str, dtype: torch.dtype, arch: str) -> Compiled:
    by_suffix = {Path(f).suffix: Path(f) for f in files.values()}
    gpu = KNOWN[arch]
    metadata = json.loads(by_suffix[".json"].read_text())
    ptx = by_suffix[".ptx"].read_text()
    usage = subprocess.run(
        [_TOOLS / "cuobjdump", "-res-usage", by_suffix[".cubin"]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    matrix = next((m for m in ("wgmma.mma_async", "tcgen05.mma", "mma.sync") if m in ptx), "none")
    constants = {source.fn.arg_names[i[0]]: value for i, value in source.constants.items()}
    config = [
        f"{name}={getattr(value, '__name__', value)}"
        for name, value in constants.items()
        if _SHOWN.match(name)
    ]
    return Compiled(
        arch=arch,
        triton=triton.__version__,
        launch=launch,
        kernel=source.fn.__name__,
        config=" ".join(
            [*config, f"warps={metadata['num_warps']}", f"stages={metadata['num_stages']}"]
        ),
        dtype={torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype],
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        spill_bytes=int(re.search(r"STACK:(\d+)", usage)[1]),
        smem_bytes=metadata["shared"],
        smem_limit=gpu.smem,
        matrix=matrix.removesuffix(".mma_async"),
        bulk_copies=len(re.findall(r"cp\.async\.bulk\.tensor", ptx)),
        starts_early=bool(metadata["launch_pdl"]),
        waits=ptx.count("griddepcontrol.wait"),
        early=accesses(ptx.partition("griddepcontrol.wait")[0]),
        together=_together(metadata["num_warps"], metadata["maxnreg"]),
        serialised=_serialised(by_suffix[".ptx"], gpu.arch) if matrix == "wgmma.mma_async" else "",
    )


def compile_all(arch: str, everything: bool, only: str = "") -> Iterator[Compiled]:
    """Each distinct kernel of those `static_launches.launches` whose name contains `only`, compiled
    for `arch`.
    """
    if knobs.runtime.interpret:
        raise RuntimeError(
            "Triton cannot compile where TRITON_INTERPRET is set: use static_check.run"
        )
    driver = _Driver(KNOWN[arch].arch)
    triton.runtime.driver.set_active(driver)
    built: list[dict[str, str]] = []
    knobs.runtime.kernel_load_end_hook = lambda module, function, name, files, hash: built.append(
        files
    )
    for launch, dtype, call in launches(KNOWN[arch], everything):
        if only in launch:
            call()
        for source, files in zip(driver.sources, built, strict=True):
            yield _read(source, files, launch, dtype, arch)
        driver.sources.clear()
        built.clear()


def run(arch: str, everything: bool = False, only: str = "") -> Iterator[Compiled]:
    """`compile_all` in a process of its own, which may set its own Triton up. RuntimeError with its
    words if it fails.
    """
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", __name__, "--arch", arch, "--only", only]
    command += ["--all"] if everything else []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            for line in process.stdout:
                yield Compiled(**json.loads(line))
        except GeneratorExit:
            # the caller has stopped early
            process.kill()
            raise
        if process.wait():
            errors.seek(0)
            raise RuntimeError(f"compiling for {arch} failed:\n{errors.read()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=KNOWN, required=True)
    parser.add_argument("--all", action="store_true", help="every model, tile and dtype; minutes")
    parser.add_argument("--only", default="", help="only launches whose name contains this")
    args = parser.parse_args()
    for compiled in compile_all(args.arch, args.all, args.only):
        print(json.dumps(dataclasses.asdict(compiled)), flush=True)


if __name__ == "__main__":
    main()
