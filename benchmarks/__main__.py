"""python -m benchmarks run | report | compare | gpu | table | roofline, each with a --help of its own."""

import importlib
import importlib.util
import sys

COMMANDS = {
    "run": (".run", "a suite: vit-fast and its rivals, accuracy and speed, on a CPU or a GPU"),
    "report": (".report", "a results file of it as a table, Markdown, plots and a page"),
    "compare": (".compare", "two results files: what got slower beyond the spread"),
    "gpu": (".gpu.program", "correctness and speed on a GPU, in order of value, inside so many minutes"),
    "table": (".gpu.table", "a results file of it as a Markdown table"),
    "roofline": (".paper.roofline", "times predicted from FLOPs, bytes and ceilings"),
}  # fmt: skip


def main(argv: list[str]) -> int:
    command, *rest = argv or ["--help"]
    if command in ("gpu", "table") and importlib.util.find_spec(".gpu", __package__) is None:
        print(
            f"{command}: the GPU program runs the tests too, which are not installed; it is started in a checkout of "
            "vit-fast, where nothing needs to be installed",
            file=sys.stderr,
        )
        return 2
    if command in COMMANDS:
        return importlib.import_module(COMMANDS[command][0], __package__).main(rest)
    known = "\n".join(f"  {name:10}{what}" for name, (_, what) in COMMANDS.items())
    usage = f"python -m benchmarks COMMAND [--help]\n{known}"
    if command in ("-h", "--help"):
        print(usage)
        return 0
    print(f"no command {command!r}\n{usage}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
