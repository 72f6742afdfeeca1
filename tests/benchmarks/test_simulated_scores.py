import numpy as np
import pytest

from benchmarks.simulated_scores import RESAMPLES, example_rates, measure, order_rates, seed_rates
from data_utils.task_def import Metric


def test_five_normal_seeds() -> None:
    rates = {rate.what: rate.rate for rate in seed_rates("normal", 5, 400, np.random.default_rng(0))}
    assert rates["sign-flip p <= 0.05"] == rates["any of 8 after Holm"] == 0, "5 seeds cannot"
    assert rates["t interval"] == pytest.approx(0.05, abs=0.035)
    assert rates["BCa interval"] > 0.1, "it covers less than it says"


def test_eight_normal_seeds_reject_as_often_as_the_test_says() -> None:
    # The largest attainable level at or below 0.05 is 12 / 256.
    rates = {rate.what: rate for rate in seed_rates("normal", 8, 400, np.random.default_rng(1))}
    assert rates["sign-flip p <= 0.05"].rate == pytest.approx(12 / 256, abs=0.035)
    assert rates["sign-flip p <= 0.05"].trials == 400


def test_seeds_luck_is_no_evidence_for_a_method() -> None:
    rates = {rate.what: rate.rate for rate in example_rates(Metric.ACC, 5.0, 5, 60, np.random.default_rng(0))}
    assert rates["McNemar, pooled"] > 0.15
    assert rates["new models"] < rates["these models"]


def test_models_that_are_equally_good_are_told_apart_as_often_as_the_tests_say() -> None:
    rates = {rate.what: rate.rate for rate in example_rates(Metric.ACC, 0.0, 3, 80, np.random.default_rng(0))}
    assert rates["McNemar, one seed"] < 0.12
    assert rates["McNemar, pooled"] == pytest.approx(0.05, abs=0.07)
    assert rates["these models"] == pytest.approx(0.05, abs=0.07)


def test_a_stricter_limit_claims_less() -> None:
    half, fifth = order_rates(0.0, 5, 100, np.random.default_rng(0))
    assert 0 < fifth.rate <= half.rate < 0.5


def test_everything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.simulated_scores.SEEDS", (5,))
    monkeypatch.setattr("benchmarks.simulated_scores.RESAMPLES", min(RESAMPLES, 199))
    found = measure(8)
    assert {rate.n for rate in found} == {5, 10}
    assert len({(rate.what, rate.data, rate.n) for rate in found}) == len(found) == 3 * 4 + 2 * 2 + 2 * 2 * 3 * 4
