"""Candidate kernels are compiled for sm_90 without one."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")
from benchmarks.candidates.check import Built


def compiled(only: str) -> list[Built]:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.candidates.check", "--json", "--only", only]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return [Built(**json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "only, count",
    [
        ("5 stages: gelu torch.bf", 1),
        ("256x128x64, 3 stages: None scale", 1),
        ("4 stages: D=64", 2),
        (": D=72", 2),
    ],
)
def test_compiled(only, count):
    found = compiled(only)
    assert len(found) == count
    assert not [(b.launch, b.faults()) for b in found if b.faults()]


@pytest.mark.slow
def test_all_compiled():
    found = compiled("")
    assert len(found) > 40
    assert not [(b.launch, b.faults()) for b in found if b.faults()]


GOOD = Built("flash", "3.9.0", 168, (240, 24), 0, 200 << 10, 48, 6, "", 132)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"spill_bytes": 8}, "spills 8 bytes"),
        ({"smem_bytes": 228 << 10}, "of shared memory"),
        ({"wgmma": 0}, "no wgmma"),
        ({"serialised": "(C7510)"}, "serialised wgmma: (C7510)"),
        ({"overlapped": 0}, "before its exponentials"),
    ],
)
def test_each_fault_is_found(change, words):
    assert GOOD.faults() == []
    (fault,) = replace(GOOD, **change).faults()
    assert words in fault
