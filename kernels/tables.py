"""A table of measured launch configs: a JSON file for one GPU, and every reason to refuse one.

    {"schema": 1, "date": "2026-11-21",
     "gpu": {"name": "NVIDIA H200", "arch": 90, "sms": 132, "smem": 232448},
     "versions": {"triton": "3.6.0", "torch": ...},
     "switches": {"pdl": {"on": true, ...}},
     "entries": [{"op": "linear", "shape": {"M": 197, ...}, "config": {"block_m": 64, ...}, ...}],
     "failed": [{"op": ..., "shape": ..., "config": ..., "why": ...}]}

A config of null says that the rule's own choice was measured and stays; what failed is not tried
again. What else an entry holds,
times in the first place, is for people. A table is of one GPU and of one minor version of Triton:
another compiler makes other code of the same config.
"""

import importlib
import json
import os
import re
import tempfile
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

SCHEMA = 1
# what an entry's shape holds; the first field is the one that may be approximate
FIELDS = {
    "linear": ("M", "N", "K", "dtype", "epilogue"),
    "linear_norm": ("M", "N", "K", "dtype"),
    "attention": ("B", "H", "Nq", "N", "D", "dtype"),
}
_WORDS = ("dtype", "epilogue")


def slug(name: str) -> str:
    """A GPU's name -> its file's: "NVIDIA H200" -> "nvidia_h200"."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def shipped_path(gpu_name: str) -> Path:
    return Path(__file__).parent / "tuned" / f"{slug(gpu_name)}.json"


def gpus(arch: int) -> list[dict[str, Any]]:
    """What the tables that ship or lie in the user's cache say of their GPUs, for those of this compute capability."""
    folders = {path.parent for path in (shipped_path(""), user_path("")) if path is not None}
    found = {}
    for path in sorted(p for folder in folders for p in folder.glob("*.json")):
        try:
            table = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        gpu = table.get("gpu") if isinstance(table, dict) else None
        named = isinstance(gpu, dict) and isinstance(gpu.get("name"), str)
        if named and gpu.get("arch") == arch and slug(gpu["name"]) == path.stem:
            found[json.dumps(gpu, sort_keys=True)] = gpu
    return list(found.values())


def cache_folder() -> Path | None:
    """$XDG_CACHE_HOME/vit-fast, else ~/.cache/vit-fast; None for a user without a home."""
    # the XDG base directory specification: a relative path is to be ignored
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = base if base.is_absolute() else Path(os.path.expanduser("~/.cache"))
    return base / "vit-fast" if base.is_absolute() else None


def user_path(gpu_name: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "tuned" / f"{slug(gpu_name)}.json"


def minor(version: str) -> str:
    """ "3.7.1" -> "3.7"."""
    return ".".join(version.split(".")[:2])


def read(path: Path, gpu: dict[str, Any], triton: str) -> dict[str, Any] | None:
    """The checked contents of a table, or None where there is no such file.

    `gpu` is tuning.hardware of it, `triton` the version that runs. ValueError says why a
    table cannot be used.
    """
    try:
        table = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    _need(isinstance(table, dict), "it is not a JSON object")
    schema = table.get("schema")
    _need(schema == SCHEMA, f"its schema is {schema!r}, this vit-fast reads {SCHEMA}")
    _need(table.get("gpu") == gpu, f"it was measured on {table.get('gpu')}, this machine has {gpu}")
    versions = table.get("versions")
    _need(isinstance(versions, dict), "it has no versions")
    measured = str(versions.get("triton"))
    _need(
        minor(measured) == minor(triton),
        f"it was measured with Triton {measured}, this is Triton {triton}",
    )
    _need(isinstance(table.get("date"), str), "it has no date")
    switches, entries = table.get("switches"), table.get("entries")
    _need(
        isinstance(switches, dict)
        and all(isinstance(s, dict) and isinstance(s.get("on"), bool) for s in switches.values()),
        "its switches are not objects that say on: true or false",
    )
    _need(isinstance(entries, list), "it has no list of entries")
    failed = table.get("failed", [])
    _need(
        isinstance(failed, list)
        and all(isinstance(f, dict) and {"op", "shape", "config"} <= f.keys() for f in failed),
        "its list of what failed is not one of op, shape and config",
    )
    for number, entry in enumerate(entries):
        try:
            _check(entry)
        except (TypeError, ValueError) as error:
            raise ValueError(f"its entry {number} is no launch config: {error}") from error
    return table


def write(path: Path, table: dict[str, Any]) -> None:
    """Whole or not at all: a reader never sees half a table. OSError where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(table, file, indent=1)
            file.write("\n")
        os.chmod(name, 0o644)  # mkstemp's file is for its owner alone
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def config_fields(op: str, config: dict[str, Any]) -> dict[str, Any]:
    """A config as JSON gives it -> the keyword arguments of the kernel's Config, lists as tuples.

    TypeError or ValueError for what the kernel's Config does not take.
    """
    cls = _kernels(op).Config
    config = {name: tuple(v) if isinstance(v, list) else v for name, v in config.items()}
    kinds = typing.get_type_hints(cls)
    for name, value in config.items():
        known = name in kinds  # what is not, the class refuses
        _need(
            not known or _is_a(value, kinds[name]),
            f"{op} takes no {name} of {value!r}, expected {kinds.get(name)}",
        )
    cls(**config)
    return config


def _kernels(op: str) -> ModuleType:
    # looked up when needed: the kernels import this module's reader, and need triton
    return importlib.import_module(f".{op}", __package__)


def _check(entry: Any) -> None:
    _need(isinstance(entry, dict), f"it is {type(entry).__name__}, expected an object")
    op, shape, config = entry.get("op"), entry.get("shape"), entry.get("config", ())
    _need(op in FIELDS, f"op is {op!r}, expected one of {', '.join(FIELDS)}")
    _need(
        isinstance(shape, dict) and shape.keys() == set(FIELDS[op]),
        f"shape is {shape!r}, expected {', '.join(FIELDS[op])}",
    )
    for name, value in shape.items():
        kind = str if name in _WORDS else int
        _need(_is_a(value, kind), f"{name} is {value!r}, expected {kind.__name__}")
        _need(kind is str or value > 0, f"{name} is {value}, expected a positive number")
    _need(
        config is None or isinstance(config, dict), f"config is {config!r}, expected fields or null"
    )
    if config is not None:
        kernels = _kernels(op)
        _need(
            not (why := kernels.misfit(kernels.Config(**config_fields(op, config)), **shape)), why
        )


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value out of JSON may stand in a field of this annotation."""
    if typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        items = items[:1] * len(value) if items[-1] is ... else items
        return (
            isinstance(value, tuple) and len(value) == len(items) and all(map(_is_a, value, items))
        )
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _need(fact: bool, otherwise: str) -> None:
    if not fact:
        raise ValueError(otherwise)
