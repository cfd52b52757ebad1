"""Times and a run in words, the same in tables, Markdown and comparisons, and how wide words are in a terminal."""

import math
import unicodedata

from ..results import Results
from .words import counted, number

VERSIONS = ("python", "torch", "transformers", "triton", "driver", "cuda", "vit_fast")


def digits(value: float | None) -> str:
    """Three significant ones; whole from 100 up: 0.0123, 12.3, 1,234. "-" for None."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value:,.0f}" if abs(value) >= 100 else number(float(f"{value:.3g}"), 3)


def duration(ms: float | None) -> str:
    """Of milliseconds, in us, ms or s."""
    if ms is None:
        return "-"
    scale, unit = scaled(ms)
    return f"{digits(ms * scale)} {unit}"


def scaled(ms: float) -> tuple[float, str]:
    """What milliseconds are multiplied by, and the unit, so that `ms` is from 1 up."""
    if ms < 1:
        return 1e3, "us"
    return (1.0, "ms") if ms < 1e4 else (1e-3, "s")


def machine(results: Results) -> str:
    """ "AMD EPYC (family 26, model 2), 2 threads, AVX512" """
    card = results["machine"]
    processor = f" ({card['processor']})" if card.get("processor") else ""
    threads = card.get("threads")
    said = [f"{card.get('device') or 'unknown device'}{processor}"]
    if threads:
        said.append(counted(threads, "thread"))
    if card.get("capability"):
        said.append(str(card["capability"]))
    return ", ".join(said)


def versions(results: Results) -> str:
    """ "python 3.11.0, torch 2.13.0, ..., openvino 2026.4.1" """
    card = results["machine"]
    found = {name: card[name] for name in VERSIONS if card.get(name)}
    found |= {name: v for name, v in (card.get("rivals") or {}).items() if v}
    return ", ".join(f"{name.replace('vit_fast', 'vit-fast')} {v}" for name, v in found.items())


def command(results: Results) -> str:
    """The command that made the file."""
    run = results["run"]
    start = "pytest" if run.get("front") == "pytest" else "python -m benchmarks run"
    return f"{start} {run.get('arguments') or ''}".strip()


def columns(text: str) -> int:
    """How wide a terminal writes it: wide characters take two places, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def plain(text: str | None) -> str:
    """One line: a reason may hold several."""
    return " ".join((text or "").split())


def brief(text: str | None, most: int = 120) -> str:
    """One line of at most `most` characters."""
    words = plain(text)
    return words if len(words) <= most else f"{words[: most - 3].rstrip()}..."
