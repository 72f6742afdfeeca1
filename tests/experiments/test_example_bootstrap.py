import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.metrics import compute_metrics
from data_utils.task_def import DataFormat, Metric, TaskDef, TaskType
from experiments.study.statistics import example_bootstrap
from experiments.study.statistics.example_bootstrap import is_regression, make_scorer, resampled_scores


def task(metric: Metric, classes: int) -> TaskDef:
    kind = TaskType.Regression if is_regression(metric) else TaskType.Classification
    return TaskDef("toy", DataFormat.PremiseOnly, kind, classes, (metric,))


def logits_of(predicted: np.ndarray, classes: int) -> np.ndarray:
    return predicted[:, None].astype(float) if classes == 1 else np.eye(classes)[predicted]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(Metric), st.integers(2, 4), st.integers(2, 30), st.integers(0, 2**31))
def test_a_weighted_score_is_the_librarys_score_of_the_repeated_examples(
    metric: Metric, classes: int, n: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    if is_regression(metric):
        classes, labels, predicted = 1, rng.integers(0, 6, n) / 2, rng.integers(0, 8, (3, n)) / 3
    else:
        classes = 2 if metric is Metric.F1 else classes
        labels, predicted = rng.integers(0, classes, n), rng.integers(0, classes, (3, n))
    predicted[2] = predicted[2, 0]  # one constant run
    drawn = rng.integers(n, size=(2, n))
    weights = np.stack([np.bincount(one, minlength=n) for one in drawn]).astype(float)
    found = make_scorer(metric, predicted, labels)(weights)
    for r, examples in enumerate(drawn):
        for s, run in enumerate(predicted):
            expected = compute_metrics(task(metric, classes), logits_of(run[examples], classes), labels[examples])[
                metric
            ]
            if np.isnan(expected) or (is_regression(metric) and len(set(run[examples])) == 1):
                # Of a sample whose values are all the same SciPy says NaN; here rounding can say anything, and only a
                # run that is constant itself is certain to be NaN.
                assert s != 2 or np.isnan(found[r, s])
            else:
                np.testing.assert_allclose(found[r, s], expected, atol=1e-8)


def test_all_runs_are_scored_on_the_same_samples() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 2, 50), rng.integers(0, 2, (2, 50))
    both = resampled_scores(Metric.MCC, predicted, labels, 200, np.random.default_rng(1))
    alone = resampled_scores(Metric.MCC, predicted[1:], labels, 200, np.random.default_rng(1))
    np.testing.assert_allclose(both[:, 1:], alone)
    same = resampled_scores(Metric.MCC, predicted[[0, 0]], labels, 200, np.random.default_rng(1))
    np.testing.assert_array_equal(same[:, 0] - same[:, 1], 0.0)


def test_the_spread_of_an_accuracy_is_the_binomials() -> None:
    n = 400
    labels = np.zeros(n, dtype=int)
    predicted = (np.arange(n) < 100)[None].astype(int)  # 75 % right
    scores = resampled_scores(Metric.ACC, predicted, labels, 4000, np.random.default_rng(0))
    assert scores.mean() == pytest.approx(75.0, abs=0.15)
    assert scores.std() == pytest.approx(100 * np.sqrt(0.75 * 0.25 / n), rel=0.05)


def test_small_batches_give_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predicted = np.arange(30) % 2, np.arange(60).reshape(2, 30) % 3 % 2
    whole = resampled_scores(Metric.F1, predicted, labels, 10, np.random.default_rng(0))
    monkeypatch.setattr(example_bootstrap, "_BATCH", 100)
    np.testing.assert_array_equal(resampled_scores(Metric.F1, predicted, labels, 10, np.random.default_rng(0)), whole)
    assert whole.shape == (10, 2)
