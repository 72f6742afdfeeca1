"""Whether the seeds of one method are spread more than those of another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.study.statistics.intervals import CONFIDENCE, Interval

_ROUNDING = 1e-12  # below it, 1 - r^2 of scores near 100 is what float64 leaves of nothing


@dataclass(frozen=True, slots=True)
class SpreadRatio:
    """Standard deviation of a method's scores over that of a baseline's, on the same seeds."""

    n: int
    """Pairs."""
    ratio: float
    """Above 1: the method's seeds differ more."""
    interval: Interval
    """95 %, for normal scores: the ratios that the test of Pitman and Morgan does not reject."""
    p: float
    """Of that test, that both spreads are equal."""
    p_brown_forsythe: float
    """Of a test that needs no normal scores, but takes the two methods' scores for independent."""


def spread_ratio(scores: Sequence[float], baseline: Sequence[float]) -> SpreadRatio:
    """Compare the spreads of paired scores.

    x + y and x - y are correlated exactly if x and y differ in variance (Pitman 1939, Morgan 1939): a t test of that
    correlation with n - 2 degrees of freedom, which counts with what the seeds share. Brown and Forsythe (1974) compare
    the mean distances from the medians.

    Args:
        scores: (n,) of the method.
        baseline: (n,) of equal seeds.

    Returns:
        Ratio, interval and p; NaN where there are fewer than three pairs, a NaN, or a method without spread.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    n, reason = len(x), ""
    if np.isnan(x).any() or np.isnan(y).any():
        reason = "a seed has no score (NaN)"
    elif n < 3:
        reason = "it takes three seeds"
    elif np.ptp(x) == 0 or np.ptp(y) == 0:
        reason = "a method scores the same with every seed"
    if reason:
        return SpreadRatio(n, math.nan, Interval(math.nan, math.nan, reason), math.nan, math.nan)
    from scipy.special import stdtr, stdtrit
    from scipy.stats import levene

    ratio = float(x.var(ddof=1) / y.var(ddof=1))  # of variances
    unexplained = (1.0 - float(np.corrcoef(x, y)[0, 1]) ** 2) / (n - 2)
    if unexplained < _ROUNDING:
        reason = "both have the same scores" if np.array_equal(x, y) else "one is a line of the other"
        return SpreadRatio(n, math.sqrt(ratio), Interval(math.nan, math.nan, reason), math.nan, math.nan)
    t = abs(ratio - 1.0) / math.sqrt(4.0 * unexplained * ratio)
    half = 1.0 + 2.0 * float(stdtrit(n - 2, (1 + CONFIDENCE) / 2)) ** 2 * unexplained
    width = half + math.sqrt(half**2 - 1.0)
    interval = Interval(math.sqrt(ratio / width), math.sqrt(ratio * width))
    p = 2.0 * float(stdtr(n - 2, -t))
    return SpreadRatio(n, math.sqrt(ratio), interval, p, float(levene(x, y, center="median").pvalue))
