"""The pictures of a results file, each made only where the file has cases for it."""

from pathlib import Path

from ..results import Results
from . import ablation, accuracy, cold_start, latency, operations, roofline, speed_up
from .style import Picture, looks, style

__all__ = ["Picture", "draw"]

KINDS = (speed_up, latency, accuracy, ablation, operations, roofline, cold_start)


def draw(results: Results, folder: Path) -> list[Picture]:
    """PNGs in `folder`, which is made if need be. ImportError, with what to install, where matplotlib is missing."""
    with style():
        folder.mkdir(parents=True, exist_ok=True)
        programs = looks(results)
        return [picture for kind in KINDS for picture in kind.draw(results, programs, folder)]
