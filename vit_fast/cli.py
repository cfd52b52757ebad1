"""The command line: vit-fast models, bench, inspect, tune and doctor."""

import argparse
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import vit_fast
from vit_fast.workload import MODELS

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

    models = commands.add_parser(
        "models",
        help="the models of transformers that run fast",
        description="Prints each family of vision encoders: the classes of transformers that are answered as a whole, "
        "those whose encoder is accelerated inside, what of them is fused, and what transformers still computes.",
    )
    models.set_defaults(run=_models)

    # what follows it is read by the benchmarks
    bench = commands.add_parser(
        "bench",
        add_help=False,
        help="measure vit-fast beside other ways to run the same models, on this machine",
    )
    bench.set_defaults(run=_bench)

    inspect = commands.add_parser(
        "inspect",
        help="compile the kernels for a GPU that need not be here, and read the machine code",
        description="Compiles the launches of ViT-B/16, ViT-L/16 and SigLIP so400m for each named GPU, gated layers, "
        "attention with rotary positions and with masks, and every config of the tuning tables in use for GPUs of its "
        "kind, and prints "
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

    tune = commands.add_parser(
        "tune",
        help="measure the fastest launch configs on this GPU, for the kernels to look up",
        description="Times every launch config of the kernels at each shape of the models, on the GPU that is here, "
        "and writes the fastest where the kernels look them up: into your cache, from the next process on. It can be "
        "stopped at any time; the same command goes on where it ended.",
    )
    tune.add_argument(
        "--model",
        nargs="+",
        default=("vit-b-16", "vit-l-16"),
        metavar="NAME",
        help=f"of {', '.join(MODELS)}; or a folder or hub id of a checkpoint; default: vit-b-16 vit-l-16",
    )
    tune.add_argument(
        "--batch",
        nargs="+",
        type=_positive(int),
        default=(1, 8, 32, 64, 256),
        metavar="N",
        help="images a call; serves up to 1.5 times more and fewer; default: 1 8 32 64 256",
    )
    tune.add_argument("--dtype", nargs="+", choices=("bf16", "fp16", "fp32"), default=("bf16",))
    tune.add_argument(
        "--minutes",
        type=_positive(float),
        default=float("inf"),
        metavar="M",
        help="stop after so many; what matters most is measured first",
    )
    tune.add_argument("--out", type=Path, metavar="FILE", help="write there, not into your cache")
    tune.set_defaults(run=_tune)

    doctor = commands.add_parser(
        "doctor",
        help="what this machine runs, and what is in the way",
        description="Prints versions, GPUs, whether the kernels run there and on which tuning table, and every "
        "trouble that it finds. The exit status is 1 if there is trouble.",
    )
    doctor.set_defaults(run=_doctor)

    args, rest = parser.parse_known_args(argv)
    if args.run is _bench:
        args.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("\nvit-fast: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # who reads has read enough; nothing more is to be written, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _positive(kind: type) -> Callable[[str], float]:
    def positive(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise ValueError(text)
        return value

    positive.__name__ = f"positive {kind.__name__}"  # argparse's message names it
    return positive


def _wrong(command: str, why: object) -> int:
    print(f"vit-fast {command}: {why}", file=sys.stderr)
    return 2


NO_TRITON = "triton is not installed (it exists for Linux): pip install triton"


def _models(args: argparse.Namespace) -> int:
    from vit_fast.families.table import table

    print(table())
    return 0


def _bench(args: argparse.Namespace) -> int:
    from vit_fast.benchmarks import compare, report, run

    for command in (report, compare):
        name = command.__name__.rpartition(".")[2]
        if args.rest[:1] == [name]:
            return command.main(args.rest[1:], prog=f"vit-fast bench {name}")
    return run.main(args.rest, prog="vit-fast bench")


def _doctor(args: argparse.Namespace) -> int:
    from vit_fast import doctor

    found = doctor.diagnose(doctor.look())
    print(found)
    return 1 if found.troubles else 0


def _tune(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("triton") is None:
        return _wrong("tune", NO_TRITON)
    from tqdm import tqdm

    from vit_fast import tune, tune_cases
    from vit_fast.doctor import nvidia_smi, versions
    from vit_fast.kernels import tables

    try:
        gpu, device, timer = tune.here()
        models = [tune_cases.model_named(name) for name in args.model]
    except (OSError, ValueError) as error:
        return _wrong("tune", error)
    path = args.out or tables.user_path(gpu.name)
    if path is None:
        return _wrong("tune", "this user has no home folder to keep a table in: say --out FILE")
    dtypes = [tune_cases.DTYPES[name] for name in args.dtype]
    cases = tune_cases.cases_of(models, args.batch, dtypes)
    made_with = {**versions(), "cuda": torch.version.cuda, "driver": nvidia_smi()[1]}
    print(f"{len(cases)} operations on {gpu.name}, to {path}")
    try:
        report = tune.tune(
            cases, gpu, device, timer, path, made_with, args.minutes,
            progress=lambda jobs: tqdm(jobs, unit="operation"),
        )  # fmt: skip
    except OSError as error:
        return _wrong("tune", f"{path} cannot be written ({error.strerror}): say --out FILE")
    except tune.Unusable as error:
        print(f"vit-fast tune: {error}", file=sys.stderr)
        return 1
    for note in report.notes:
        print(f"NOTE: {note}")
    print(
        f"{report.measured} measured, in {report.better} of them a candidate beats the launch rule; "
        f"{report.kept} were measured before, {report.left} are left"
        + (": the same command goes on with them" if report.left else "")
    )
    return 0


def _inspect(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("triton") is None:
        return _wrong("inspect", NO_TRITON)
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
        return _wrong("inspect", f"no launch matches --only {args.only!r}")
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
