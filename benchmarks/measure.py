"""Timing in turn, the machine's card, and where results files go."""

import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

import vit_fast
from vit_fast.doctor import nvidia_smi

ROOT = Path(__file__).resolve().parents[1]


def in_turn(
    programs: Mapping[str, Callable[[], object]],
    seconds: float,
    device: str = "cpu",
    least: int = 4,
) -> dict[str, list[float]]:
    """Milliseconds a call, the programs in turn, round by round, after one round to warm up."""
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(rounds) <= least:
        rounds.append([])
        for program in programs.values():
            begin = time.perf_counter()
            program()
            if device == "cuda":
                torch.cuda.synchronize()
            rounds[-1].append((time.perf_counter() - begin) * 1e3)
    return dict(zip(programs, map(list, zip(*rounds[1:], strict=True)), strict=True))


def quantile(values: list[float], q: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))


def machine(device: str) -> dict[str, object]:
    """What a reader has to know of the machine beside the numbers."""
    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        "processor": None if cuda else processor(),
        "threads": None if cuda else torch.get_num_threads(),
        "capability": None if cuda else torch.backends.cpu.get_cpu_capability(),
        "driver": (nvidia_smi()[1] or None) if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "vit_fast": vit_fast.__version__,
    }


def processor() -> str:
    """Family and model: processors of one name are not alike."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    found = [re.search(rf"^{name}\s*: (\d+)$", text, re.M) for name in ("cpu family", "model")]
    return f"family {found[0][1]}, model {found[1][1]}" if all(found) else platform.machine()


def cpu_name() -> str:
    path = "/proc/cpuinfo"
    found = re.search(r"model name\s*: (.+)", Path(path).read_text()) if os.path.exists(path) else None  # fmt: skip
    return found[1] if found else platform.processor() or platform.machine()


def commit() -> str | None:
    """The git commit of the checkout, "+" behind it where files differ, results apart; None without a repository."""
    # an installed copy may lie in a repository of somebody else
    if shutil.which("git") is None or not (ROOT / "setup.py").exists():
        return None

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)

    head = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def write(name: str, results: dict[str, Any], record: bool) -> Path:
    """To benchmarks/results/<device>/, or .benchmarks/<device>/ where git does not look."""
    slug = re.sub(r"\W+", "_", str(results["device"]).lower()).strip("_")
    path = ROOT / ("benchmarks/results" if record else ".benchmarks") / slug / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path
