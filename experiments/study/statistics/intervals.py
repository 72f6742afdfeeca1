"""Confidence intervals of a mean difference, each with the reason if it is not to be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 9_999
_ROUNDING = 1e-12  # of percent, that float64 may leave of equal ones: an example more or less is a million times that


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided 95 % confidence interval."""

    low: float
    """NaN where there is no interval."""
    high: float
    degenerate: str = ""
    """Why it is not to be trusted or not there; empty when nothing is known against it."""


def t_interval(differences: Sequence[float], size: float = 100.0) -> Interval:
    """Student's interval of the mean: exact for normal differences, at any n >= 2.

    Equal differences have no spread to make one of: it is NaN, not of width zero.

    Args:
        differences: (n,) of equal seeds.
        size: Of the numbers that were subtracted, whose rounding makes no difference: percent, unless told otherwise.
    """
    n, reason = len(differences), _degenerate(differences, size)
    if n < 2 or any(math.isnan(d) for d in differences) or _all_equal(differences, size):
        return Interval(math.nan, math.nan, reason)
    from scipy.special import stdtrit

    mean = math.fsum(differences) / n
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(differences) / math.sqrt(n)
    return Interval(mean - half, mean + half, reason)


def bca_interval(differences: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron 1987), by SciPy.

    It assumes no distribution, but resamples see only the n differences that there are: it cannot reach outside them,
    and covers less than it says while n is small (``docs/statistics.md`` has the measured figures). Of two differences
    it is the span between them; of equal ones it is not defined, and NaN.

    Args:
        differences: (n,) of equal seeds.
        resamples: Bootstrap samples.
        seed: Of the resampling.
    """
    reason = _degenerate(differences)
    if len(differences) < 2 or any(math.isnan(d) for d in differences) or _all_equal(differences):
        return Interval(math.nan, math.nan, reason)
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(differences, dtype=np.float64),), np.mean, n_resamples=resamples, confidence_level=CONFIDENCE,
        method="BCa", vectorized=True, random_state=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(float(found.low), float(found.high), reason)


def percentile_interval(resampled: NDArray[np.floating[Any]]) -> Interval:
    """Percentile bootstrap interval (Efron 1979).

    Args:
        resampled: (R,) values of the statistic; a NaN among them makes the interval NaN, and so does one value for all.
    """
    if not np.isnan(resampled).any() and _all_equal((float(resampled.min()), float(resampled.max()))):
        return Interval(math.nan, math.nan, "every sample gives the same difference")
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    reason = "a score is not defined (NaN)" if math.isnan(low) else ""
    return Interval(float(low), float(high), reason)


def bootstrap_p(resampled: NDArray[np.floating[Any]]) -> float:
    """Two-sided p that goes with the percentile interval: the largest level at which it still holds zero.

    Args:
        resampled: (R,) values of the statistic; NaN if any of them is.

    Returns:
        p in [2 / (R + 1), 1].
    """
    if np.isnan(resampled).any():
        return math.nan
    below, above = int(np.sum(resampled <= _ROUNDING)), int(np.sum(resampled >= -_ROUNDING))
    return min(1.0, 2.0 * (min(below, above) + 1) / (len(resampled) + 1))


def _degenerate(differences: Sequence[float], size: float = 100.0) -> str:
    if any(math.isnan(d) for d in differences):
        return "a seed has no score (NaN)"
    if len(differences) < 2:
        return "fewer than two seeds have no spread"
    if _all_equal(differences, size):
        return "all pairs differ by the same"
    return "two seeds: BCa is the span of the two differences" if len(differences) == 2 else ""


def _all_equal(differences: Sequence[float], size: float = 100.0) -> bool:
    return math.isclose(max(differences), min(differences), rel_tol=1e-12, abs_tol=_ROUNDING * size / 100.0)
