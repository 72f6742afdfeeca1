import math

import numpy as np
import pytest
from scipy import stats

from experiments.study.statistics.difference import Difference
from experiments.study.statistics.intervals import bca_interval, bootstrap_p, percentile_interval, t_interval

DIFFERENCES = [0.4, 1.3, -0.2, 2.1, 0.9, 0.3]


def test_the_t_interval_is_scipys() -> None:
    found = t_interval(DIFFERENCES)
    expected = stats.ttest_1samp(DIFFERENCES, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.degenerate == ""
    assert Difference("vanilla", dict(enumerate(DIFFERENCES))).interval == t_interval(DIFFERENCES)


def test_the_bca_interval_is_the_textbooks() -> None:
    """Efron and Tibshirani 1993, equation 14.10, from all 6^6 samples instead of random ones."""
    d = np.array(DIFFERENCES)
    means = d[np.stack(np.meshgrid(*[np.arange(6)] * 6), axis=-1).reshape(-1, 6)].mean(axis=1)
    z0 = stats.norm.ppf((np.mean(means < d.mean()) + np.mean(means <= d.mean())) / 2)
    left_out = (d.sum() - d) / 5
    centred = left_out.mean() - left_out
    a = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    z = stats.norm.ppf([0.025, 0.975])
    expected = np.quantile(means, stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))))
    found = bca_interval(DIFFERENCES, resamples=50_000)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.03)
    assert found.degenerate == ""
    assert found == bca_interval(DIFFERENCES, resamples=50_000), "the seed is stated"
    assert found != bca_interval(DIFFERENCES, resamples=50_000, seed=1)


def test_bca_never_leaves_the_differences_that_there_are() -> None:
    found, student = bca_interval(DIFFERENCES), t_interval(DIFFERENCES)
    assert min(DIFFERENCES) <= found.low < found.high <= max(DIFFERENCES)
    assert found.high - found.low < student.high - student.low


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("differences", "reason"),
    [
        ([], "fewer than two seeds"),
        ([1.0], "fewer than two seeds"),
        ([1.0, math.nan, 2.0], "no score"),
        ([0.3, 0.3, 0.1 + 0.2], "all pairs differ by the same"),
    ],
)
def test_where_there_is_no_bca_interval_it_is_nan_and_says_why(differences: list[float], reason: str) -> None:
    found = bca_interval(differences)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert reason in found.degenerate


def test_two_seeds_span_an_interval_that_is_marked() -> None:
    found = bca_interval([1.0, 3.0])
    assert (found.low, found.high) == (1.0, 3.0)
    assert "two seeds" in found.degenerate
    # Student's is as wide as it must be: t(1, 0.975) = 12.7 standard errors.
    assert t_interval([1.0, 3.0]).low == pytest.approx(2.0 - 12.706, abs=1e-3)


def test_the_t_interval_of_too_little_is_nan() -> None:
    assert math.isnan(t_interval([1.0]).low)
    assert math.isnan(t_interval([1.0, math.nan]).high)
    equal = t_interval([2.0, 2.0, 2.0])
    assert math.isnan(equal.low)
    assert math.isnan(equal.high)
    assert equal.degenerate == "all pairs differ by the same"


@pytest.mark.parametrize("unit", [1e-13, 1e-6, 1.0, 1e6])
def test_the_t_interval_keeps_its_digits_in_any_unit(unit: float) -> None:
    """Differences of sensitivities may be far smaller than what rounding leaves of percents."""
    found = Difference("vanilla", {i: d * unit for i, d in enumerate(DIFFERENCES)}, 3.0 * unit).interval
    expected = t_interval(DIFFERENCES)
    assert (found.low, found.high) == pytest.approx((expected.low * unit, expected.high * unit))
    equal = Difference("vanilla", {1: 0.3 * unit, 2: (0.1 + 0.2) * unit}, 3.0 * unit).interval
    assert math.isnan(equal.low)


def test_samples_that_all_give_the_same_have_no_percentile_interval() -> None:
    found = percentile_interval(np.full(999, 0.25))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.degenerate == "every sample gives the same difference"
    assert bootstrap_p(np.zeros(999)) == 1.0


def test_the_bootstraps_p_agrees_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    for shift in np.linspace(-3, 3, 25):
        resampled = rng.normal(shift, 1.0, size=999)
        interval = percentile_interval(resampled)
        p = bootstrap_p(resampled)
        assert abs(p - 0.05) < 0.01 or (p > 0.05) == (interval.low <= 0 <= interval.high)
        assert 2 / 1000 <= p <= 1


def test_differences_that_only_rounding_tells_from_zero_count_on_both_sides() -> None:
    rounding = np.array([1e-14, -1e-14])
    assert bootstrap_p(np.concatenate([np.full(900, 1e-14), np.full(99, 1.0)])) == 1.0
    exact = bootstrap_p(np.concatenate([np.zeros(100), np.full(899, 1.0)]))
    assert bootstrap_p(np.concatenate([np.repeat(rounding, 50), np.full(899, 1.0)])) == exact == 2 * 101 / 1000


def test_a_nan_among_the_resamples_is_not_left_out() -> None:
    resampled = np.array([1.0, math.nan, 2.0])
    assert math.isnan(percentile_interval(resampled).low)
    assert "NaN" in percentile_interval(resampled).degenerate
    assert math.isnan(bootstrap_p(resampled))
