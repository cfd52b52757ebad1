"""What the machine does beside the program that is timed: clocks, other processes, memory."""

import contextlib
import ctypes
import gc
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

MIB = 1 << 20
LEAST_S = 0.5  # of counting processor time, a tick of which is 10 ms
SMI = {"clocks.sm": "mhz", "clocks.mem": "memory_mhz", "power.draw": "watts", "temperature.gpu": "celsius"}  # fmt: skip


def clocks(device: torch.device) -> dict[str, float]:
    """MHz, W and degrees Celsius as far as the machine tells; {} where it tells nothing."""
    return _gpu(device) if device.type == "cuda" else _cpu()


def _cpu() -> dict[str, float]:
    found: dict[str, float] = {}
    path = Path("/proc/cpuinfo")
    if path.exists():
        mhz = [float(m) for m in re.findall(r"cpu MHz\s*: ([\d.]+)", path.read_text())]
        if mhz:
            found["mhz"] = round(sum(mhz) / len(mhz), 1)
    zone = Path("/sys/class/thermal/thermal_zone0/temp")
    with contextlib.suppress(OSError, ValueError):
        # a virtual machine has none, or does not tell
        found["celsius"] = int(zone.read_text()) / 1000
    return found


def _gpu(device: torch.device) -> dict[str, float]:
    if shutil.which("nvidia-smi") is None:
        return {}
    # nvidia-smi counts every GPU, CUDA those that are visible: the uuid is the same for both
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    asked = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader,nounits", f"--id={uuid}"]  # fmt: skip
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found = {}
    for name, value in zip(SMI.values(), done.stdout.strip().split(", "), strict=False):
        try:
            found[name] = float(value)
        except ValueError:
            continue  # "[N/A]"
    return found


@dataclass(frozen=True)
class Busy:
    """Seconds of processor time since the machine started: of all processes, stolen by the host, of this process."""

    everyone: float
    stolen: float
    own: float

    @classmethod
    def now(cls) -> "Busy | None":
        path = Path("/proc/stat")
        if not path.exists():
            return None
        user, nice, system, _, _, irq, soft, steal = map(int, path.read_text().split()[1:9])
        tick = os.sysconf("SC_CLK_TCK")
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return cls((user + nice + system + irq + soft) / tick, steal / tick, own)

    def foreign(self, before: "Busy", seconds: float) -> float:
        """The share of all processors that was not this process's while it might have used them.

        0 of less than LEAST_S: the machine counts in ticks of 10 ms, and one of them would be a crowd.
        """
        if seconds < LEAST_S:
            return 0.0
        taken = (self.everyone - before.everyone) - (self.own - before.own)
        return max(0.0, taken + self.stolen - before.stolen) / (seconds * (os.cpu_count() or 1))


def last_level_cache() -> int:
    """Bytes, 32 MiB where the machine does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = re.fullmatch(r"(\d+)([KM]?)", path.read_text().strip()).groups()
        sizes.append(int(number) * {"": 1, "K": 1 << 10, "M": MIB}[unit])
    return max(sizes, default=32 * MIB)


class PeakMemory:
    """with PeakMemory(device) as peak: ...; peak.mib is what was taken beside what was there, or None."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.mib = device, None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
            return self
        self.before = resident()
        with contextlib.suppress(OSError):
            # the peak of the resident memory counts from here
            Path("/proc/self/clear_refs").write_text("5")
            return self
        self.before = None
        return self

    def __exit__(self, *error: object) -> None:
        if self.before is None:
            return
        if self.device.type == "cuda":
            now = torch.cuda.max_memory_allocated(self.device)
        else:
            now = _status("VmHWM")
        self.mib = round(max(0, now - self.before) / MIB, 1)


def resident() -> int | None:
    """Bytes that this process holds, what malloc keeps for later given back; None where the system does not tell."""
    if not Path("/proc/self/status").exists():
        return None
    gc.collect()
    with contextlib.suppress(AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def held(device: torch.device) -> int | None:
    """Bytes in use on the device: on a GPU of tensors and of the pools of CUDA graphs, on a CPU of this process."""
    if device.type != "cuda":
        return resident()
    gc.collect()
    # what is left behind it, no other tensor gets; a graph's pool counts as reserved, not as allocated
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) << 10
