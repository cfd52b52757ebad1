"""benchmarks.regression.medians: variances and quantiles by hand, and against what medians do."""

import math
import random
import statistics

import pytest

from benchmarks.regression import medians


def test_a_variance_by_hand():
    """10 times: c = 5.5 - 3.16 = 2, p = (1 + 10) / 512 = 0.0215, z = 2.299: the second and the ninth."""
    times = [math.exp(x) for x in (5, 1, 9, 2, 8, 3, 7, 4, 6, 10)]
    assert medians.log_variance(times) == pytest.approx((7 / (2 * 2.29928)) ** 2, rel=1e-4)
    assert medians.log_variance([3.0] * 10) == 0
    assert medians.log_variance([1.0, 2.0]) is None
    assert medians.log_variance([0.0] * 10) is None


def test_more_changes_looked_at_ask_for_more_certainty():
    """Of one at 1%: 2.576 standard errors; of a hundred: 3.891."""
    times = [math.exp(0.1 * x) for x in range(10)]
    one, hundred = (medians.bound([times, times], m) for m in (1, 100))
    error = math.sqrt(2 * medians.log_variance(times))
    assert (one / error, hundred / error) == pytest.approx((2.5758, 3.8906), rel=1e-4)
    assert medians.bound([times, [1.0]], 1) is None


def test_the_variance_is_that_of_medians():
    """Of the log of 4000 medians of 51 times, on average; never too small, for that would be false alarms."""
    draw = random.Random(0)
    samples = [[draw.lognormvariate(0, 0.05) for _ in range(51)] for _ in range(4000)]
    real = statistics.variance(math.log(statistics.median(s)) for s in samples)
    assert 1 < statistics.fmean(map(medians.log_variance, samples)) / real < 1.2
