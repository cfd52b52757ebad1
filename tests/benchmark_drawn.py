"""Results files made up with known medians and spreads: what the comparison of two is tested on."""

import math
import random
import statistics

from benchmark_results import results
from benchmarks.results import timed

SIGMA = 1 / 1.349  # of normal times whose middle half is 1 wide
OURS, RIVAL, BASELINE = "vit-fast", "OpenVINO", "transformers, eager"
QUIET = 2  # cases[1] is the disturbed one


def drawn(seed, spread=0.01, n=20, slower=(), outliers=0.1):
    """The same medians for every seed; `slower`: (case, program, factor). A tenth of the calls takes up to 20% more."""
    draw, found = random.Random(seed), results()
    for i, case in enumerate(found["cases"]):
        for row in timed(case):
            factor = math.prod(f for c, p, f in slower if (c, p) == (i, row["program"]))
            sample(row, row["p50_ms"] * factor, spread, n, draw, outliers)
    return found


def sample(row, ms, spread, n, draw, outliers=0.0):
    times = [
        ms * math.exp(draw.gauss(0, spread * SIGMA)) * (1 + draw.uniform(0, 0.2) * (draw.random() < outliers))
        for _ in range(n)
    ]  # fmt: skip
    row.update(samples_ms=times, p50_ms=statistics.median(times), least_ms=min(times))


def of_kind(kind, found):
    return [c for c in found if c.kind == kind]


def regressions(found):
    return [(c.case, c.program) for c in found if c.regression]
