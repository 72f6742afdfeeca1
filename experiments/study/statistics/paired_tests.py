"""Exact tests of paired differences, over seeds and over examples, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
MOST_EXACT = 20  # 2**20 sums of signs take milliseconds; beyond, they are drawn
MONTE_CARLO_FLIPS = 99_999

# Sums that are equal in exact arithmetic differ in their last bits; real scores differ by far more than this share.
_TIE = 1e-9


@dataclass(frozen=True, slots=True)
class SignFlip:
    """A two-sided sign-flip permutation test of the mean."""

    p: float
    """NaN when a difference is NaN or there is none."""
    n: int
    exact: bool
    """Whether all 2^n flips were taken; else :data:`MONTE_CARLO_FLIPS` random ones."""


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's exact test of two classifiers on the same examples."""

    only_first: int
    """Examples that only the first one has right."""
    only_second: int
    p: float


def smallest_p(n: int) -> float:
    """Smallest p that the sign-flip test can give: all n differences of one sign, 2 flips of 2^n.

    From random flips it is that of the observed one alone.
    """
    return min(1.0, 2.0 ** (1 - n)) if n <= MOST_EXACT else 1.0 / (MONTE_CARLO_FLIPS + 1)


def seeds_needed(comparisons: int = 1) -> int:
    """Fewest seeds with which the exact sign-flip test can reach :data:`LEVEL`, Holm's correction included."""
    return math.ceil(1 + math.log2(comparisons / LEVEL))


def sign_flip(differences: Sequence[float], seed: int = 0) -> SignFlip:
    """Test whether paired differences are symmetric about zero.

    Under the null hypothesis every sign could as well be the other one. p is the share of sign flips whose |mean| is at
    least the observed one's (Fisher 1935): of all 2^n flips up to n = 20; above that of random flips, the observed one
    counted among them (Phipson and Smyth 2010).

    Args:
        differences: (n,) of equal seeds, any unit.
        seed: Of the random flips; not used while the test is exact.
    """
    d = np.asarray(differences, dtype=np.float64)
    n = len(d)
    exact = n <= MOST_EXACT
    if n == 0 or np.isnan(d).any():
        return SignFlip(math.nan, n, exact)
    least = abs(d.sum()) - _TIE * np.abs(d).sum()
    if exact:
        sums = d[:1]  # the first sign stays: the other half of the flips has the same |sums|
        for value in d[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return SignFlip(float(np.mean(np.abs(sums) >= least)), n, exact)
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], dtype=np.int8), size=(MONTE_CARLO_FLIPS, n))
    extreme = int(np.sum(np.abs(signs @ d) >= least))
    return SignFlip((extreme + 1) / (MONTE_CARLO_FLIPS + 1), n, exact)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """McNemar's test (1947) in its exact form: the examples that one alone has right are a fair coin's.

    Args:
        first: (N,) whether each example is right.
        second: (N,) of the other classifier.
    """
    from scipy.stats import binom

    b, c = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    p = min(1.0, 2.0 * float(binom.cdf(min(b, c), b + c, 0.5)))
    return McNemar(b, c, p)


def pooled_mcnemar(net: NDArray[np.int64]) -> float:
    """McNemar's exact test over several pairs of classifiers (seeds) on the same examples.

    Examples are the unit, so one that is hard for every seed counts once. Each has the number of seeds for which only
    the first method has it right, minus that for which only the second has; under the null hypothesis its sign could as
    well be the other one. p is the share of all sign flips over the examples whose |sum| is at least the observed one,
    from the exact distribution of the sum. With one seed it is McNemar's test.

    Args:
        net: (N,) differences in [-S, S] for S seeds.

    Returns:
        p in [0, 1]. Values below about 1e-12 are rounding.
    """
    from scipy.signal import convolve
    from scipy.stats import binom

    counts = np.bincount(np.abs(net))  # (S + 1,): examples by the size of their difference
    # The sum is 2 m - total, with m the sum of those differences whose sign came out positive.
    distribution = np.ones(1)  # over m = 0, 1, ...
    for size, count in enumerate(counts.tolist()):
        if size and count:
            of_size = np.zeros(size * count + 1)
            of_size[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
            distribution = convolve(distribution, of_size)
    sums = 2 * np.arange(len(distribution)) - (len(distribution) - 1)
    return float(np.clip(distribution[np.abs(sums) >= abs(int(net.sum()))].sum(), 0.0, 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the chance of any false rejection in the family stays below the level.

    Args:
        p_values: The family, in any order. A NaN stays NaN and still counts as a comparison.

    Returns:
        Corrected p, in the same order.
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    corrected = [math.nan] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected
