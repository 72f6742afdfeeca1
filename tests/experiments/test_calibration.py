"""Calibration and the spread of seeds, held to plain formulas, scikit-learn and SciPy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats
from sklearn.metrics import log_loss

from experiments.study.statistics.calibration import BINS, calibration_of
from experiments.study.statistics.spread import spread_ratio


def expected_error(p, labels):
    """Equations 2 and 3 of Guo et al. (2017), bin by bin."""
    confidence, predicted, total = p.max(axis=1), p.argmax(axis=1), 0.0
    for b in range(1, BINS + 1):
        inside = [i for i, c in enumerate(confidence) if (b - 1) / BINS < c <= b / BINS]
        if inside:
            accuracy = sum(predicted[i] == labels[i] for i in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - sum(confidence[i] for i in inside) / len(inside))
    return 100.0 * total


@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 10_000), st.floats(0.01, 20.0))
@settings(max_examples=60, deadline=None)
def test_calibration_is_the_formulas(n, k, seed, scale):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0.0, scale, (n, k)), rng.integers(k, size=n)
    p = special.softmax(logits, axis=1)
    found = calibration_of(logits, labels)
    assert found.ece == pytest.approx(expected_error(p, labels), abs=1e-9)
    assert found.nll == pytest.approx(float(-special.log_softmax(logits, axis=1)[range(n), labels].mean()), rel=1e-9)
    one_hot = np.eye(k)[labels]
    assert found.brier == pytest.approx(np.mean(np.sum((p - one_hot) ** 2, axis=1)), rel=1e-9, abs=1e-15)


def test_the_likelihood_is_scikit_learns():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0.0, 2.0, (200, 3)), rng.integers(3, size=200)
    expected = log_loss(labels, special.softmax(logits, axis=1), labels=[0, 1, 2])
    assert calibration_of(logits.astype(np.float32), labels).nll == pytest.approx(expected, rel=1e-5)


def test_a_sure_and_right_model_has_no_error_and_a_sure_and_wrong_one_has_all():
    logits, labels = np.array([[90.0, -90.0], [-90.0, 90.0]]), np.array([0, 1])
    right, wrong = calibration_of(logits, labels), calibration_of(logits, 1 - labels)
    assert (right.ece, right.nll, right.brier) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    assert (wrong.ece, wrong.nll, wrong.brier) == pytest.approx((100.0, 180.0, 2.0))


def test_a_coin_that_says_so_is_calibrated():
    found = calibration_of(np.zeros((4, 2)), np.array([0, 1, 0, 1]))
    assert (found.ece, found.nll, found.brier) == pytest.approx((0.0, math.log(2.0), 0.5))


X, Y = [61.0, 63.5, 60.2, 64.9, 62.2, 59.8], [60.5, 61.4, 60.1, 61.2, 61.9, 59.9]


def pitman_morgan(x, y, ratio=1.0):
    """The textbook's form: the correlation of x + r y and x - r y, where r is the hypothesis's ratio of deviations."""
    x, y = np.asarray(x), ratio * np.asarray(y)
    return stats.pearsonr(x + y, x - y).pvalue


def test_the_spread_is_tested_by_the_correlation_of_sum_and_difference():
    found = spread_ratio(X, Y)
    assert found.ratio == pytest.approx(np.std(X, ddof=1) / np.std(Y, ddof=1))
    assert found.p == pytest.approx(pitman_morgan(X, Y))
    assert found.p_brown_forsythe == pytest.approx(stats.levene(X, Y, center="median").pvalue)
    assert found.n == 6


def test_the_interval_holds_the_ratios_that_are_not_rejected():
    found = spread_ratio(X, Y)
    for bound, outside in ((found.interval.low, 1e-3), (found.interval.high, 1e3)):
        edge = optimize.brentq(lambda r: pitman_morgan(X, Y, r) - 0.05, *sorted((found.ratio, outside)))
        assert bound == pytest.approx(edge, rel=1e-6)


def test_a_spread_of_equal_methods_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        shared = rng.normal(0.0, 1.0, 5)
        found = spread_ratio(shared + rng.normal(0.0, 1.0, 5), shared + rng.normal(0.0, 1.0, 5))
        held += found.interval.low <= 1.0 <= found.interval.high
    assert 930 <= held <= 970


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1.0, 2.0], [1.0, 3.0], "it takes three seeds"),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "a method scores the same with every seed"),
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0], "a method scores the same with every seed"),
        ([1.0, math.nan, 3.0], [1.0, 2.0, 3.0], "a seed has no score (NaN)"),
    ],
)
def test_without_spread_there_is_no_ratio(x, y, reason):
    found = spread_ratio(x, y)
    assert found.interval.degenerate == reason
    assert found.n == len(x)
    assert all(math.isnan(v) for v in (found.ratio, found.p, found.p_brown_forsythe, found.interval.low))


def test_a_line_of_the_other_has_a_ratio_and_no_interval():
    rng = np.random.default_rng(2)
    for slope, y in [(2.0, [1.0, 2.0, 3.0]), *((rng.uniform(0.3, 3.0), rng.normal(80.0, 2.0, 5)) for _ in range(20))]:
        found = spread_ratio(slope * np.asarray(y) + 3.0, y)
        assert found.ratio == pytest.approx(slope)
        assert found.interval.degenerate == "one is a line of the other"
        assert math.isnan(found.interval.low)
        assert math.isnan(found.p)
    same = spread_ratio([1.0, 2.0, 4.0], [1.0, 2.0, 4.0])
    assert (same.ratio, same.interval.degenerate) == (1.0, "both have the same scores")
