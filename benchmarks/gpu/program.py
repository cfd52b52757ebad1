"""The command line of the GPU program."""

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path

from benchmarks.gpu import BEGUN
from benchmarks.gpu.cells import chosen
from benchmarks.gpu.results import ROOT, Results, smi
from benchmarks.gpu.runner import NoWorker, Runner
from benchmarks.gpu.setting import FULL, TOY, hide_gpus
from benchmarks.measure import commit

DESCRIPTION = """One command for a GPU that is there for minutes: is it right, how fast can it be, how fast is it.

Sections, each a list of cells:
  correctness  every kernel against float64, fp32 fp16 bf16, awkward shapes and strides, each run repeatedly
  models       whole models against transformers in float64: tokens, logits, hidden states, uint8 images, the drop-in
  ceilings     cuBLAS, SDPA's backends, copy bandwidth, the gap between launches: nothing of this project
  kernels      each kernel against its ceiling, in turn
  checks, candidates   launch configs and other kernels: checked, then timed in turn
  end_to_end   ViT-B and ViT-L against transformers and torch.compile, with each program's accuracy

Cells run in order of value and are saved one by one to DIR/gpu.json; the same command goes on where it stopped. Other
versions or another machine begin another file, and so do changed kernels, which take the vendor's rows along. What
does not fit into the minutes is listed. Everything that workers print is in DIR/gpu.log. A summary comes last.

An interrupt ends it early, with the summary. Exit status: 1 if anything of this project was wrong, failed or crashed;
2 if the call is wrong, or no process for the cells starts; 130 after an interrupt; else 0.
"""
RECORDED = ROOT / "benchmarks" / "results"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    out = "default: .benchmarks/gpu; with --dry-run a new folder"
    option("--out", type=Path, metavar="DIR", help=out)
    option("--minutes", type=float, default=9.0, help="until it ends, start included; default 9")
    option(
        "--only",
        action="append",
        default=[],
        metavar="SECTION[:SUBSTRING]",
        help="and what it needs",
    )
    option(
        "--list", action="store_true", help="the cells in order and their estimates, nothing run"
    )
    option("--dry-run", action="store_true", help="toy sizes on the CPU, kernels interpreted")
    args = parser.parse_args(argv)
    if not args.minutes > 0:
        parser.error(f"--minutes {args.minutes}: a positive number is needed")
    if args.dry_run:
        hide_gpus()
    setting = TOY if args.dry_run else FULL
    out = args.out or Path(tempfile.mkdtemp(prefix="gpu-") if args.dry_run else ".benchmarks/gpu")
    if args.dry_run and out.resolve().is_relative_to(RECORDED):
        parser.error(f"--out {out}: a dry run's numbers do not go to {RECORDED}")
    log = out / "gpu.log"
    try:
        out.mkdir(parents=True, exist_ok=True)
        log.open("a").close()
    except OSError as error:
        parser.error(f"--out {out}: {error.strerror}")

    def say(line: str) -> None:
        print(line, flush=True)
        with log.open("a") as file:
            file.write(line + "\n")

    ended = 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Runner(setting, log, BEGUN + 60 * args.minutes, say) as runner:
        # slow to import, and not before the interpreter is chosen
        from benchmarks.gpu import plan
        from benchmarks.gpu.summary import failures, lines

        if not args.dry_run and not plan.torch.cuda.is_available():
            parser.error("there is no CUDA GPU; --dry-run needs none")
        try:
            machine = runner.ask(plan.MACHINE)
        except RuntimeError as error:
            parser.error(str(error))
        try:
            cells = chosen(plan.cells(setting, plan.Gpu(**machine["gpu"])), args.only)
        except ValueError as error:
            parser.error(str(error))
        if args.list:
            for cell in cells:
                print(f"{cell.rank:5.2f}  {cell.seconds:4.0f} s  {cell.key}")
            return 0
        del machine["status"]
        results = Results.open(out, machine, say)
        results.data["runs"].append(run := {
            "argv": argv, "begun": now(), "commit": commit(), "smi_before": smi(), "cpus": os.cpu_count(),
        })  # fmt: skip
        say(f"{len(cells)} cells, {args.minutes:g} minutes, {machine['device']}, to {results.path}")
        try:
            runner.run(cells, results)
        except KeyboardInterrupt:
            ended = 130
            say("interrupted")
        except NoWorker as error:
            ended = 2
            say(str(error))
        run |= {"ended": now(), "smi_after": smi()}
        results.save()
    for line in lines(results.data):
        say(line)
    return ended or int(bool(failures(results.data)))


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
