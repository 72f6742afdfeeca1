import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from experiments.study.statistics.stochastic_order import almost_stochastic_order, violation_ratio

SCORES = st.lists(st.integers(0, 50).map(float), min_size=1, max_size=7)


@settings(max_examples=50, deadline=None)
@given(SCORES, SCORES)
def test_the_violation_ratio_is_its_integral(first: list[float], second: list[float]) -> None:
    # A grid that divides every step: the midpoints of 420 = lcm(1, ..., 7) equal parts.
    t = (np.arange(420) + 0.5) / 420
    gap = np.quantile(first, t, method="inverted_cdf") - np.quantile(second, t, method="inverted_cdf")
    found = float(violation_ratio(np.array(first), np.array(second)))
    if not gap.any():
        assert math.isnan(found)
        return
    assert found == pytest.approx((gap[gap < 0] ** 2).sum() / (gap**2).sum())
    assert found + float(violation_ratio(np.array(second), np.array(first))) == pytest.approx(1.0)


def test_samples_come_near_the_ratio_of_their_distributions() -> None:
    # N(0.5, 1.5) against N(0, 1): the quantiles differ by 0.5 + 0.5 z, so the order is broken below z = -1.
    total = quad(lambda z: (0.5 + 0.5 * z) ** 2 * norm.pdf(z), -np.inf, np.inf)[0]
    truth = quad(lambda z: (0.5 + 0.5 * z) ** 2 * norm.pdf(z), -np.inf, -1)[0] / total
    rng = np.random.default_rng(0)
    found = almost_stochastic_order(
        rng.normal(0.5, 1.5, 3000).tolist(), rng.normal(0.0, 1.0, 2000).tolist(), resamples=100
    )
    assert found.violation == pytest.approx(truth, abs=0.05)
    assert found.violation < found.bound < found.violation + 0.1


def test_the_bound_is_the_ratio_plus_a_normal_quantile_of_the_bootstraps_spread() -> None:
    first, second = [60.0, 61.0, 63.0, 58.0], [59.5, 60.5, 61.5]
    rng = np.random.default_rng(3)
    f = rng.integers(4, size=(500, 4))
    g = rng.integers(3, size=(500, 3))
    drawn = np.array([violation_ratio(np.array(first)[i], np.array(second)[j]) for i, j in zip(f, g, strict=True)])
    found = almost_stochastic_order(first, second, resamples=500, seed=3)
    expected = found.violation - norm.ppf(1 - 0.95) * drawn.std()
    assert found.bound == pytest.approx(min(1.0, expected))
    assert found.violation == float(violation_ratio(np.array(first), np.array(second)))


def test_a_larger_sample_is_larger() -> None:
    better, worse = [70.0, 71.0, 72.0], [60.0, 61.0, 62.0]
    assert almost_stochastic_order(better, worse).bound == 0.0
    assert almost_stochastic_order(worse, better).violation == 1.0
    assert almost_stochastic_order(worse, better).bound == 1.0


def test_what_is_not_defined_is_nan() -> None:
    same = almost_stochastic_order([1.0, 2.0], [1.0, 2.0])
    assert math.isnan(same.violation)
    assert math.isnan(same.bound)
    assert math.isnan(almost_stochastic_order([1.0, math.nan], [1.0, 2.0]).violation)
    assert math.isnan(almost_stochastic_order([1.0], [0.0]).bound), "one score has no spread"
    tied = almost_stochastic_order([1.0, 2.0], [1.0, 1.0])
    assert tied.undefined > 0
    assert not math.isnan(tied.bound)


@pytest.mark.parametrize(
    ("first", "second", "violation", "reason"),
    [
        ([61.0] * 5, [60.0] * 5, 0.0, "each method scores the same with every seed"),
        ([60.0, 61.0], [61.0, 60.0], math.nan, "both have the same scores"),
        ([61.0], [60.0], 0.0, "fewer than two seeds"),
        ([61.0, math.nan], [60.0, 61.0], math.nan, "NaN"),
    ],
)
def test_scores_without_a_spread_have_no_bound_and_say_so(
    first: list[float], second: list[float], violation: float, reason: str
) -> None:
    found = almost_stochastic_order(first, second)
    assert found.violation == pytest.approx(violation, nan_ok=True)
    assert math.isnan(found.bound)
    assert reason in found.degenerate
    assert almost_stochastic_order([61.0, 62.0], [60.0, 60.0]).degenerate == ""
