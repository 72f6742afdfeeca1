"""Almost stochastic order: the share by which one method's scores fail to lie above another's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.study.statistics.intervals import CONFIDENCE

RESAMPLES = 1_000


@dataclass(frozen=True, slots=True)
class StochasticOrder:
    """The distance of the first sample from being stochastically larger than the second."""

    violation: float
    """ε in [0, 1]: 0, the first one's quantiles are all at least the other's; 1, the other way round; NaN when the two
    samples are the same or have a NaN."""
    bound: float
    """ε_min: upper 95 % confidence bound of ε, at most 1. NaN with fewer than two scores in a sample, and where neither
    sample has a spread."""
    undefined: int
    """Bootstrap samples in which ε is not defined, because both came out the same; the bound is without them."""
    degenerate: str = ""
    """Why ε or its bound is not there; empty where both are."""


def violation_ratio(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    r"""Violation ratio ε_W2 of "the first is stochastically larger" (del Barrio, Cuesta-Albertos and Matrán 2018).

    With the quantile functions F⁻¹ of the first sample and G⁻¹ of the second,

        ε = ∫_{F⁻¹ < G⁻¹} (F⁻¹(t) − G⁻¹(t))² dt / ∫_0^1 (F⁻¹(t) − G⁻¹(t))² dt,

    the share of the squared Wasserstein distance that speaks against the order. Quantile functions of samples are
    steps, so the integrals are sums.

    Args:
        first: (..., n) scores, larger is better.
        second: (..., m) scores, with the same leading dimensions.

    Returns:
        (...) values in [0, 1], NaN where the two samples are the same distribution.
    """
    f, g = np.sort(first, axis=-1), np.sort(second, axis=-1)
    n, m = f.shape[-1], g.shape[-1]
    edges = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)  # where a step ends, in units of 1 / (n m)
    gap = f[..., edges[:-1] // m] - g[..., edges[:-1] // n]
    squared = gap**2 * np.diff(edges)
    with np.errstate(invalid="ignore"):
        ratio: NDArray[np.float64] = np.where(gap < 0, squared, 0.0).sum(axis=-1) / squared.sum(axis=-1)
    return ratio


def almost_stochastic_order(
    first: Sequence[float], second: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> StochasticOrder:
    """Bound the violation ratio from above (Dror, Shlomov and Reichart 2019, equations 4 to 6).

    ε_min = ε − sqrt((n + m) / (n m)) σ Φ⁻¹(α), with α = 0.05 and σ² the bootstrap variance of
    sqrt(n m / (n + m)) ε*; the two roots cancel. ε_min < 0.5 is read as "almost stochastically larger", a smaller limit
    asks for more. The samples are taken as independent: pairing by seed is not used.

    Args:
        first: (n,) scores of the method, one per seed.
        second: (m,) scores of its baseline.
        resamples: Bootstrap samples for σ.
        seed: Of the resampling.
    """
    f, g = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not len(f) or not len(g) or np.isnan(f).any() or np.isnan(g).any():
        return StochasticOrder(math.nan, math.nan, 0, "a seed has no score (NaN)")
    violation = float(violation_ratio(f, g))
    if math.isnan(violation):
        return StochasticOrder(violation, math.nan, 0, "both have the same scores")
    if min(len(f), len(g)) < 2:
        return StochasticOrder(violation, math.nan, 0, "fewer than two seeds have no spread")
    if np.ptp(f) == np.ptp(g) == 0.0:
        return StochasticOrder(violation, math.nan, 0, "each method scores the same with every seed")
    rng = np.random.default_rng(seed)
    drawn = violation_ratio(
        f[rng.integers(len(f), size=(resamples, len(f)))], g[rng.integers(len(g), size=(resamples, len(g)))]
    )
    defined = drawn[~np.isnan(drawn)]
    spread = float(defined.std()) if len(defined) else math.nan
    bound = violation + NormalDist().inv_cdf(CONFIDENCE) * spread
    return StochasticOrder(violation, math.nan if math.isnan(bound) else min(1.0, bound), resamples - len(defined))
