"""The results file of the GPU program, one JSON object:

machine   what has to be the same for results to be put beside each other: device, driver, versions, `source` (a
          digest of the kernels and the runtime); and what else a reader has to know of the machine
runs      one entry a command: its arguments, when, the git commit, nvidia-smi before and after
cells     "section/name" -> row; every row has status (ok, wrong, failed, crashed, timed out, cut), seconds, at
skipped   cells that did not fit into the last command's minutes
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import Cell

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = ("device", "driver", "python", "torch", "triton", "transformers", "dry_run")


def read(path: Path) -> dict[str, Any]:
    """A results file. OSError or ValueError says why it is none."""
    data = json.loads(path.read_text())
    kinds = {"machine": dict, "runs": list, "cells": dict, "skipped": list}
    if not isinstance(data, dict) or not all(isinstance(data.get(k), t) for k, t in kinds.items()):
        raise ValueError(f"a results file is an object of {', '.join(kinds)}")
    if not all(isinstance(row, dict) and "status" in row for row in data["cells"].values()):
        raise ValueError("its cells are not rows with a status")
    return data


class Results:
    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path, self.data = path, data

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        return self.data["cells"]

    @classmethod
    def open(
        cls, folder: Path, machine: Mapping[str, Any], say: Callable[[str], None] = print
    ) -> "Results":
        """Goes on with the newest file in `folder` that has this machine, these versions and this source.

        With other versions or on another machine a new file is begun. With another source too, but the rows of
        vendor cells come along, since nothing in them has changed. A file that cannot be read stays as it is.
        """
        folder.mkdir(parents=True, exist_ok=True)
        found, number = {}, 1
        for path in folder.glob("gpu*.json"):
            if match := re.fullmatch(r"gpu(?:-(\d+))?\.json", path.name):
                number = max(number, int(match[1] or 1) + 1)
                try:
                    found[int(match[1] or 1)] = cls(path, read(path))
                except (OSError, ValueError) as error:
                    say(f"{path} is left as it is, it cannot be read: {error}")
        path = folder / ("gpu.json" if number == 1 else f"gpu-{number}.json")
        new = cls(path, {"machine": dict(machine), "runs": [], "cells": {}, "skipped": []})
        for number in sorted(found, reverse=True):
            old = found[number]
            if any(old.data["machine"].get(k) != machine.get(k) for k in IDENTITY):
                continue
            if old.data["machine"].get("source") == machine.get("source"):
                for key in [k for k, row in old.cells.items() if row["status"] == "cut"]:
                    del old.cells[key]
                return old
            new.cells.update({k: row for k, row in old.cells.items() if row.get("vendor")})
            break
        return new

    def add(self, cell: Cell, row: Mapping[str, Any], seconds: float) -> None:
        marks = {"vendor": True} if cell.vendor else {"ours": True} if cell.ours else {}
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.cells[cell.key] = {**row, **marks, "seconds": round(seconds, 2), "at": at}
        self.save()

    def save(self) -> None:
        """The old file or the new one is there at any moment, never half of one."""
        half = self.path.with_suffix(".tmp")
        half.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(half, self.path)


def source() -> str:
    """A digest of what is measured: kernels, their tables, the runtime, the candidates."""
    files = [
        *ROOT.glob("kernels/**/*.py"),
        *ROOT.glob("kernels/**/*.json"),
        *ROOT.glob("benchmarks/candidates/*.py"),
        *(p for p in ROOT.glob("vit_fast/**/*.py") if "kernels" not in p.relative_to(ROOT).parts),
    ]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


SMI = ("driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit",
       "temperature.gpu")  # fmt: skip


def smi() -> dict[str, str]:
    """The GPU's state as nvidia-smi reads it, MHz, W and degrees Celsius; {} where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return {}
    asked = [
        "nvidia-smi",
        f"--query-gpu={','.join(SMI)}",
        "--format=csv,noheader,nounits",
        "--id=0",
    ]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)[:200]}
    values = done.stdout.strip().split(", ")
    return dict(zip(SMI, values)) if len(values) == len(SMI) else {"error": done.stdout[:200]}
