"""python -m benchmarks gpu | table | roofline, each with a --help of its own."""

import importlib
import sys

COMMANDS = {
    "gpu": ("benchmarks.gpu.program", "correctness and speed on a GPU, in order of value, inside so many minutes"),
    "table": ("benchmarks.gpu.table", "a results file of it as a Markdown table"),
    "roofline": ("benchmarks.roofline", "times predicted from FLOPs, bytes and ceilings"),
}  # fmt: skip


def main(argv: list[str]) -> int:
    command, *rest = argv or ["--help"]
    if command in COMMANDS:
        return importlib.import_module(COMMANDS[command][0]).main(rest)
    known = "\n".join(f"  {name:10}{what}" for name, (_, what) in COMMANDS.items())
    usage = f"python -m benchmarks COMMAND [--help]\n{known}"
    if command in ("-h", "--help"):
        print(usage)
        return 0
    print(f"no command {command!r}\n{usage}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
