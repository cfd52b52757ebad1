"""Numbers and a run in words, the same in tables, Markdown and comparisons."""

import math
import unicodedata

from .results import Case, Results, Row, score

VERSIONS = ("python", "torch", "transformers", "triton", "driver", "cuda", "vit_fast")


def digits(value: float | None) -> str:
    """Three significant digits, more only before the point; "-" for None."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = int(f"{value:.2e}".partition("e")[2])
    if exponent < -3:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 2 - exponent)}f}"


def percent(value: float | None) -> str:
    """0.0234 -> "2.3%"; from 10% on without a point; "-" for None."""
    if value is None:
        return "-"
    return f"{value:.0%}" if abs(value) >= 0.0995 else f"{value:.1%}"


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


def share(row: Row) -> float | None:
    """Error over what is allowed, the worse of the two measures; None without accuracy."""
    found = row["accuracy"]
    if not found:
        return None
    pairs = ((found.get(e), found.get(a)) for e, a in (("error", "allowed"), ("row_error", "row_allowed")))  # fmt: skip
    shares = [_over(e, a) for e, a in pairs if e is not None and a is not None]
    if any(math.isnan(s) for s in shares):
        return math.nan
    return max(shares, default=None)


def _over(error: float, allowed: float) -> float:
    if allowed:
        return error / allowed
    return 0.0 if error == 0 else math.inf


def ranked(case: Case) -> list[Row]:
    """The accurate programs, the best first; without those that lack the number they are ranked by."""
    key = "p90_ms" if case["scenario"] == "single stream" else "images_s"
    rows = [r for r in case["rows"] if r["status"] == "ok" and r[key]]
    return sorted(rows, key=lambda r: score(case, r))


def machine(results: Results) -> str:
    """ "AMD EPYC (family 26, model 2), 2 threads, AVX512" """
    card = results["machine"]
    processor = f" ({card['processor']})" if card.get("processor") else ""
    threads = card.get("threads")
    said = [f"{card.get('device') or 'unknown device'}{processor}"]
    if threads:
        said.append(f"{threads} thread{'s' * (threads != 1)}")
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
