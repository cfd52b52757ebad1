"""The cases of a suite under pytest-benchmark, a program a test, a case a group.

Each program's result is held against float64 before it is timed, also without timing (--benchmark-disable): one of
ours that is wrong or fails is a failed test, a rival that cannot run here is skipped, one that fails an expected
failure. The samples go to .benchmarks/<device>/<suite>-pytest.json, too, in the format of `python -m benchmarks run`.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from .case import Case
from .registry import cases
from .sequence import Suite


@pytest.mark.benchmark(disable_gc=True)
def test_program(case: Case, program: str, suite: Suite, benchmark: BenchmarkFixture) -> None:
    benchmark.group, benchmark.name = case.name, program
    if benchmark.enabled and suite.results is None:
        suite.begin_results({c.dtype for c in cases(suite.name, suite.device.type)})
    with torch.inference_mode():
        row = suite.measure(case, program, benchmark)
    benchmark.extra_info.update({k: row[k] for k in ("status", "why", "accuracy", "build_s")})
    if row["status"] in ("ok", "inaccurate"):
        return
    why = f"{program}, {row['status']}: {row['why']}"
    if row["status"] == "skipped":
        pytest.skip(why)
    if row["ours"]:
        pytest.fail(why, pytrace=False)
    pytest.xfail(why)
