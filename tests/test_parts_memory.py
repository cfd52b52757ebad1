"""How many images a part has, and the memory that the process keeps: parts.py."""

import os
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from models import NORM, SPEC, images
from vit_fast import ViT, parts
from vit_fast.parts import BLOCK, counts

ROWS = SPEC.tokens()
# of an image of SPEC in fp32: its widest tensor, qkv
IMAGE = ROWS * 3 * SPEC.inner_dim * 4


@pytest.mark.parametrize(
    "batch, rows, spec, itemsize, expected",
    [
        (1, ROWS, SPEC, 4, [1]),
        (0, ROWS, SPEC, 4, [0]),
        (BLOCK // IMAGE, ROWS, SPEC, 4, [BLOCK // IMAGE]),
        (BLOCK // IMAGE + 1, ROWS, SPEC, 4, [(BLOCK // IMAGE + 2) // 2, (BLOCK // IMAGE + 1) // 2]),
        # ViT-B/16-224: 2.4 MB an image behind fc1 in fp32
        (8, 197, replace(SPEC, heads=12, head_dim=64, mlp_dim=3072), 4, [8]),
        (32, 197, replace(SPEC, heads=12, head_dim=64, mlp_dim=3072), 4, [11, 11, 10]),
        (32, 197, replace(SPEC, heads=12, head_dim=64, mlp_dim=3072), 2, [16, 16]),
        # 13 fit, not 14
        (27, 197, replace(SPEC, heads=12, head_dim=64, mlp_dim=3072), 4, [9, 9, 9]),
        # ViT-S/32-224: the pixels of a patch are more than what is behind fc1
        (64, 50, replace(SPEC, patch=32, heads=6, head_dim=64, mlp_dim=1536), 4, [32, 32]),
        (2, 0, SPEC, 4, [2]),
        # an image alone may be more
        (3, 10_000, replace(SPEC, mlp_dim=8192), 4, [1, 1, 1]),
    ],
)  # fmt: skip
def test_counts(batch, rows, spec, itemsize, expected):
    assert counts(batch, rows, spec, itemsize) == expected


@pytest.mark.parametrize(
    "changes, width",
    [
        ({"mlp_dim": 3072}, 3072),  # behind fc1
        ({"heads": 12, "head_dim": 64}, 2304),  # behind qkv
        ({"dim": 1024}, 1024),  # between blocks
        ({"patch": 32}, 3072),  # before the first one
    ],
)
@pytest.mark.parametrize("rows", [50, 197, 1370])
def test_every_part_fits_and_one_less_would_not(rows, changes, width):
    spec = replace(SPEC, **changes)
    for batch in range(1, 130):
        found = counts(batch, rows, spec, 4)
        assert sum(found) == batch and max(found) - min(found) <= 1
        assert max(found) * rows * width * 4 <= BLOCK
        assert len(found) == 1 or -(-batch // (len(found) - 1)) * rows * width * 4 > BLOCK


def test_the_heap_is_led_to_keep_more_whatever_the_batch(monkeypatch):
    calls = []
    monkeypatch.setattr(parts, "keep_heap", lambda: calls.append(None))
    with torch.inference_mode():
        ViT(SPEC, NORM)(images(1, 3, 32, 32))
    assert len(calls) == 1


SCRIPT = """
import resource, torch
from vit_fast.parts import keep_heap
with torch.device("meta"):
    keep_heap()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.ones(14 << 20, dtype=torch.uint8) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults() * resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="malloc may be another library's")
def test_the_heap_keeps_what_was_freed():
    # any of these settings turns off what keep_heap makes use of
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    run = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=env)
    # of 560 MiB; all of them without it, in most processes
    assert int(done.stdout) < 60 << 20


LIMITED = """
import resource
from vit_fast.parts import keep_heap
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (16 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
keep_heap()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_without_room_for_a_block_goes_on():
    subprocess.run([sys.executable, "-c", LIMITED], check=True)
