"""The command line: vit-fast inspect."""

import argparse
import importlib.util
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import vit_fast

if TYPE_CHECKING:
    from vit_fast.kernels.static_check import Compiled

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0; 1 where a check found a fault; 2 where the call is wrong."""
    parser = argparse.ArgumentParser(
        prog="vit-fast", description="Runs Vision Transformer encoders on Triton kernels."
    )
    parser.add_argument("--version", action="version", version=f"vit-fast {vit_fast.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    inspect = commands.add_parser(
        "inspect",
        help="compile the kernels for a GPU that need not be here, and read the machine code",
        description="Compiles the launches of ViT-B/16, ViT-L/16 and SigLIP so400m for each named GPU, and prints "
        "registers, spilled bytes, shared memory against the GPU's limit, matrix instructions and bulk copies. "
        "The exit status is 1 if a kernel spills, does not fit, misses the matrix unit, or has serialised wgmma.",
    )
    inspect.add_argument(
        "--arch",
        nargs="+",
        choices=ARCHS,
        default=("sm_80", "sm_86", "sm_90", "sm_100"),
        metavar="SM",
        help=f"of {', '.join(ARCHS)}; default: sm_80 sm_86 sm_90 sm_100",
    )
    inspect.add_argument(
        "--all", action="store_true", help="every model, tile, epilogue and dtype (minutes)"
    )
    inspect.add_argument(
        "--only", default="", metavar="TEXT", help="only launches whose name contains TEXT"
    )
    inspect.set_defaults(run=_inspect)

    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("\nvit-fast: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # who reads has read enough; nothing more is to be written, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _inspect(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("triton") is None:
        print(
            "vit-fast inspect: triton is not installed (it exists for Linux): pip install triton",
            file=sys.stderr,
        )
        return 2
    from vit_fast.kernels import static_check

    archs = list(dict.fromkeys(args.arch))
    counts = dict.fromkeys(archs, 0)
    stop = threading.Event()

    def compile_for(arch: str) -> "list[Compiled]":
        found = []
        for compiled in static_check.run(arch, args.all, args.only):
            if stop.is_set():
                break
            found.append(compiled)
            counts[arch] += 1
            if sys.stderr.isatty():
                done = ", ".join(f"{a} {n}" for a, n in counts.items())
                print(f"\rkernels compiled: {done} ", end="", file=sys.stderr, flush=True)
        return found

    faults = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for arch, found in zip(archs, pool.map(compile_for, archs), strict=True):
                if sys.stderr.isatty():
                    print(file=sys.stderr)
                faults += _print_table(arch, found)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    kernels = sum(counts.values())
    if not kernels:
        print("vit-fast inspect: no launch matches --only " + repr(args.only), file=sys.stderr)
        return 2
    print(
        f"{kernels} kernels for {' '.join(archs)}: "
        + (f"{faults} with faults" if faults else "no faults")
    )
    return 1 if faults else 0


def _print_table(arch: str, found: "list[Compiled]") -> int:
    """Prints one GPU's kernels; returns how many have faults."""
    if not found:
        return 0
    print(f"\n{arch}, compiled by Triton {found[0].triton}")
    print(
        f"{'launch':56} {'dtype':5} {'regs':>4} {'spill':>5} {'shared KB':>9} {'matrix':12} {'bulk':>4} config"
    )
    for c in found:
        memory = f"{c.smem_bytes / 1024:.0f}/{c.smem_limit / 1024:.0f}"
        print(
            f"{c.launch:56} {c.dtype:5} {c.registers:4} {c.spill_bytes:5} {memory:>9} {c.matrix:12} "
            f"{c.bulk_copies:4} {c.kernel.strip('_').removesuffix('_kernel')}: {c.config}"
        )
        for fault in c.faults():
            print(f"    FAULT: {fault}")
    return sum(bool(c.faults()) for c in found)


if __name__ == "__main__":
    sys.exit(main())
