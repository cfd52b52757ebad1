"""What this machine has for vit-fast, what it runs there, and what is in the way.

`look()` gathers the facts and fails nowhere; `diagnose(facts)` is a pure function of them. So every trouble can be
told from facts alone, on machines that are not here.
"""

import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

import vit_fast
from vit_fast import onednn, onednn_attention
from vit_fast.kernels import tables
from vit_fast.ops import choose_ops

# the versions that setup.py asks for: at least, below
WANTED = {"torch": ("2.8", ""), "triton": ("3.6", ""), "transformers": ("5.17", "6")}


@dataclass(frozen=True)
class Card:
    """A GPU that PyTorch sees."""

    name: str
    capability: str  # "9.0"
    total_gb: float
    free_gb: float
    runs_kernels: bool
    why: str  # it does, or does not
    table: str = ""  # which launch configs are in use there
    refused: tuple[str, ...] = ()  # tables that lie there and cannot be used


@dataclass(frozen=True)
class Facts:
    versions: Mapping[str, str]  # "" where it is missing, "broken: ..." where it does not import
    system: str = "Linux"
    cuda_built: str = ""  # the CUDA release that torch was built with, "" for a CPU build
    hip_built: str = ""
    cards: tuple[Card, ...] = ()
    cuda_words: str = ""  # what PyTorch says while it looks for GPUs
    smi_cards: tuple[str, ...] = ()  # GPUs that nvidia-smi lists
    driver: str = ""  # of nvidia-smi
    smi_words: str = ""  # nvidia-smi is there and does not answer: its words
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    cpu_why_not: Mapping[str, str] = field(default_factory=dict)  # dtype -> why not oneDNN, or ""
    cpu_attention_why_not: Mapping[str, str] = field(default_factory=dict)  # the same of attention
    cache: str = ""  # the folder, "" for a user without a home
    cache_trouble: str = ""


@dataclass(frozen=True)
class Diagnosis:
    lines: tuple[str, ...]
    troubles: tuple[str, ...]

    def __str__(self) -> str:
        found = self.troubles or ("none found",)
        return "\n".join([*self.lines, "", "trouble", *(f"    {line}" for line in found)])


def diagnose(f: Facts) -> Diagnosis:
    """The facts as lines, and what to do about each trouble among them."""
    lines = [f"{name:13} {version or 'not installed'}" for name, version in f.versions.items()]
    built = (f.cuda_built and f"CUDA {f.cuda_built}") or (f.hip_built and f"ROCm {f.hip_built}") or "a CPU"  # fmt: skip
    lines += [f"{'torch is for':13} {built}"]
    lines += [f"{'driver':13} {f.driver or 'none of NVIDIA found'}"]
    if not f.cards:
        lines += [f"{'gpu':13} none that PyTorch sees: models run on the CPU"]
    for number, card in enumerate(f.cards):
        lines += [
            f"cuda:{number}        {card.name}, compute capability {card.capability}, "
            f"{card.free_gb:.1f} of {card.total_gb:.1f} GB free",
            f"    kernels   {'run' if card.runs_kernels else 'do NOT run: ' + card.why}",
        ]
        lines += [f"    configs   {card.table}"] * bool(card.table)
    for dtype, why in f.cpu_why_not.items():
        slow = f.cpu_attention_why_not.get(dtype, "")
        attention = f"PyTorch's attention: {slow}" if slow else "oneDNN attention"
        table = f"PyTorch's own operations: {why}" if why else f"oneDNN linear layers, {attention}"
        lines.append(f"{'cpu, ' + dtype:13} {table}")
    lines.append(f"{'cache':13} {f.cache or 'none: this user has no home'}")
    return Diagnosis(tuple(lines), tuple(_troubles(f)))


def _troubles(f: Facts):
    for name, (least, below) in WANTED.items():
        version = f.versions.get(name, "")
        if not version and name == "triton":
            if f.system == "Linux":
                yield "triton is not installed, so no kernel can run: pip install triton"
        elif not version or version.startswith("broken"):
            yield f"{name} cannot be imported ({version or 'not installed'}): install it anew"
        elif _number(version) < _number(least) or (below and _number(version) >= _number(below)):
            asked = f">= {least}" + (f", < {below}" if below else "")
            yield f"{name} is {version}, vit-fast is made for {asked}: install one of these"
    yield from _no_gpu(f)
    for number, card in enumerate(f.cards):
        if not card.runs_kernels:
            yield f"cuda:{number} runs PyTorch's operations, not the kernels: {card.why}"
        yield from card.refused
    if f.cache_trouble:
        yield f"{f.cache_trouble}: `vit-fast tune` cannot keep what it measures there; set XDG_CACHE_HOME, or use --out"


def _no_gpu(f: Facts):
    """Why PyTorch sees no GPU, or fewer than there are."""
    if f.smi_words:
        yield f"nvidia-smi is installed and finds no driver ({f.smi_words}): load or install the NVIDIA driver"
    if f.hip_built or len(f.cards) >= len(f.smi_cards):
        if f.cuda_words:
            yield f"PyTorch says of CUDA: {f.cuda_words}"
        return
    there = f"nvidia-smi shows {', '.join(f.smi_cards)} with driver {f.driver}"
    seen = f"PyTorch sees {len(f.cards) or 'no'} GPU"
    if not f.cuda_built:
        yield (
            f"{there}, but torch {f.versions.get('torch')} is built for a CPU: install a CUDA build "
            "(https://pytorch.org/get-started)"
        )
    elif "too old" in f.cuda_words:
        yield (
            f"{there}, too old for torch's CUDA {f.cuda_built}: update the driver, or install a torch built for an "
            f"older CUDA ({f.cuda_words})"
        )
    elif f.visible is not None:
        yield f"{there}, {seen}: CUDA_VISIBLE_DEVICES is {f.visible!r}"
    else:
        yield f"{there}, {seen}" + (f": {f.cuda_words}" if f.cuda_words else "")


def look() -> Facts:
    """The facts of this machine. Raises nothing: what cannot be found out is a fact as well."""
    smi_cards, driver, smi_words = nvidia_smi()
    cards, cuda_words = _cards()
    cache, cache_trouble = _cache()
    return Facts(
        versions=versions(),
        system=platform.system(),
        cuda_built=torch.version.cuda or "",
        hip_built=torch.version.hip or "",
        cards=cards,
        cuda_words=cuda_words,
        smi_cards=smi_cards,
        driver=driver,
        smi_words=smi_words,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        cpu_why_not={str(d)[6:]: onednn.why_not(d) for d in onednn.DTYPES},
        cpu_attention_why_not={str(d)[6:]: onednn_attention.why_not(d) for d in onednn.DTYPES},
        cache=cache,
        cache_trouble=cache_trouble,
    )


def versions() -> dict[str, str]:
    found = {"vit-fast": vit_fast.__version__, "python": platform.python_version()}
    for name in ("torch", "triton", "transformers"):
        try:
            found[name] = importlib.import_module(name).__version__
        except ModuleNotFoundError as error:
            found[name] = "" if error.name == name else f"broken: {error}"
        except (AttributeError, ImportError, OSError, RuntimeError) as error:
            found[name] = f"broken: {_one_line(error)}"
    return found


def nvidia_smi(program: str = "nvidia-smi") -> tuple[tuple[str, ...], str, str]:
    """(the names of its GPUs, its driver's version, its words where it fails); all empty where there is none."""
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return (), "", ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), "", _one_line(error)
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 1]
    if done.returncode or not rows:
        return (), "", _one_line(done.stderr or done.stdout) or "it lists no GPU"
    return tuple(name for name, _ in rows), rows[0][1], ""


def _cards() -> tuple[tuple[Card, ...], str]:
    """The GPUs that PyTorch sees, and what it says while it looks."""
    cards = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore")  # what is deprecated is not this machine's trouble
        warnings.simplefilter("always", UserWarning)
        error = None
        try:
            # is_available() warns, and init() says the same as an error, of a driver that is too old
            for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
                cards.append(_card(torch.device("cuda", number)))
        except (AssertionError, OSError, RuntimeError) as e:
            error = e
    words = [_one_line(w.message) for w in said] + ([_one_line(error)] if error else [])
    return tuple(cards), "; ".join(dict.fromkeys(words))


def _card(device: torch.device) -> Card:
    p = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    ops, why = choose_ops(device, torch.bfloat16)
    runs, table, refused = ops.name.startswith("triton"), "", ()
    if runs:
        table, refused = tuning_table(device)
    return Card(p.name, f"{p.major}.{p.minor}", total / 1e9, free / 1e9, runs, why, table, refused)


def tuning_table(device: torch.device) -> tuple[str, tuple[str, ...]]:
    """Which launch configs are in use on a device, in a line, and the tables that cannot be used. Needs triton."""
    from vit_fast.kernels.tuning import gpu_of, which_table

    found = which_table(gpu_of(device))
    if found.kind == "rule":
        return "the launch rule: nothing was measured, `vit-fast tune` does", found.refused
    whose = "measured on this machine" if found.kind == "user" else "the ones that ship"
    of = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    shapes = f"{len(found.entries)} shapes, {found.date}, {of}"
    return f"{whose}: {shapes}: {found.path}", found.refused


def _cache() -> tuple[str, str]:
    """The cache folder, and why nothing can be written there, or ""."""
    folder = tables.cache_folder()
    if folder is None:
        return "", "this user has no home folder"
    # the nearest folder above it that is there is where the others would be made
    there = next(p for p in (folder, *folder.parents) if os.path.exists(p))
    if not os.path.isdir(there):
        return str(folder), f"{there} is a file, not a folder"
    return str(folder), "" if os.access(
        there, os.W_OK | os.X_OK
    ) else f"{there} cannot be written to"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:2])


def _one_line(words: object) -> str:
    return " ".join(str(words).split())[:400]
