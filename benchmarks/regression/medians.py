"""How far medians of times may differ by chance: what `compare` calls beyond the spread.

A file holds n times of each program, and their median. The change of a median from an old file to a new one is
looked at as log(new / old), and so is the change of a ratio to a baseline, which is a sum of four logarithms:

    change = log(program new / program old) - log(baseline new / baseline old)

The variance of the logarithm of one median is Price and Bonett's, from two order statistics of the sample, whatever
the times' distribution is. With the sorted times x(1) .. x(n) and c = (n + 1)/2 - sqrt(n), rounded, at least 1,

    variance = ((log x(n - c + 1) - log x(c)) / (2 z))^2,    z = the normal quantile at 1 - p/2,
    p = the sum of binomial(n, i) / 2^(n - 1) over i < c,

for 1 - p is exactly how often the interval [x(c), x(n - c + 1)] holds the true median. Variances of independent
medians add up, and a change is beyond the spread where |change| > quantile * sqrt(their sum). (R. M. Price and
D. G. Bonett, "Distribution-free confidence intervals for difference and ratio of medians", Journal of Statistical
Computation and Simulation 72 (2002); the variance: "Estimating the variance of the sample median", 68 (2001).)

The quantile is the one of the normal distribution at 1 - ALARMS / (2 m), where m changes are looked at (Bonferroni):
all m together give a false alarm in at most ALARMS of the comparisons of files that are alike. In simulation this
holds for ratios from 5 times a program up, where times are normal, exponential, or normal with outliers; for uniform
ones within a factor of 5, and for 3 times within 20. With few times the interval is wide, and one outlier makes it
wider: to guard against a tenth at a spread of 2%, measure 20.

What times within a run do not show, another layout of memory or another clock, is not in that variance: FLOOR is for
it. A program and its baseline that are slowed by the same neighbours, as in rounds, only make it an overestimate.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

ALARMS = 0.01  # of the comparisons of files that are alike
FLOOR = 0.02  # smaller changes are never named
LEAST = 3  # times of a program: of fewer there is no interval to speak of


def log_variance(times: Sequence[float]) -> float | None:
    """The variance of the logarithm of the median of `times` [n]; None of fewer than LEAST, or of times of 0."""
    n = len(times)
    if n < LEAST or min(times) <= 0:
        return None
    logs = sorted(map(math.log, times))
    c = max(1, round((n + 1) / 2 - math.sqrt(n)))
    outside = sum(math.comb(n, i) for i in range(c)) / 2 ** (n - 1)
    z = NormalDist().inv_cdf(1 - outside / 2)
    return ((logs[n - c] - logs[c - 1]) / (2 * z)) ** 2


def bound(samples: Sequence[Sequence[float]], looked_at: int) -> float | None:
    """The least |log change| that is beyond the spread of all `samples`, one of `looked_at` changes.

    None where one of them has too few times to say.
    """
    variances = [log_variance(times) for times in samples]
    if any(v is None for v in variances):
        return None
    quantile = NormalDist().inv_cdf(1 - ALARMS / (2 * max(looked_at, 1)))
    return max(math.log1p(FLOOR), quantile * math.sqrt(sum(variances)))
