import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from data_utils.metrics import compute_metrics, predictions
from data_utils.task_def import Metric, TaskDef


def logits_of(classes: list[int], k: int = 2) -> np.ndarray:
    return np.eye(k, dtype=np.float32)[classes]


def test_classification_by_hand(pair_task: TaskDef) -> None:
    # Of 8: 3 true positives, 1 false positive, 2 false negatives, 2 true negatives.
    predicted, labels = [1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0, 0]
    scores = compute_metrics(pair_task, logits_of(predicted), np.array(labels))
    assert list(scores) == ["ACC", "F1", "MCC"]
    assert scores["ACC"] == pytest.approx(100 * 5 / 8)
    assert scores["F1"] == pytest.approx(100 * 2 * 3 / (2 * 3 + 1 + 2))
    assert scores["MCC"] == pytest.approx(100 * (3 * 2 - 1 * 2) / np.sqrt(4 * 5 * 3 * 4))


def test_all_metrics_are_the_libraries(pair_task: TaskDef, score_task: TaskDef) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(200, 2)), generator.integers(0, 2, 200)
    scores = compute_metrics(pair_task, logits, labels)
    assert scores["F1"] == 100 * sklearn_metrics.f1_score(labels, logits.argmax(1))
    assert scores["MCC"] == 100 * sklearn_metrics.matthews_corrcoef(labels, logits.argmax(1))
    values = generator.normal(size=200)
    scores = compute_metrics(score_task, values[:, None], 0.5 * values + generator.normal(size=200))
    again = compute_metrics(score_task, values[:, None], 0.5 * values + generator.normal(size=200))
    assert scores != again
    labels = 0.5 * values + generator.normal(size=200)
    scores = compute_metrics(score_task, values[:, None], labels)
    assert scores["Pearson"] == pytest.approx(100 * np.corrcoef(values, labels)[0, 1], rel=1e-12)
    assert scores["Spearman"] == pytest.approx(
        100 * np.corrcoef(stats.rankdata(values), stats.rankdata(labels))[0, 1], rel=1e-12
    )


def test_macro_f1_is_the_mean_over_the_classes(single_task: TaskDef) -> None:
    task = replace(single_task, metric_meta=(Metric.ACC, Metric.F1MAC))
    # F1 of class 0: 2 hits in 3 guesses and 2 rows, 4/5; of class 2: 1 hit in 1 guess and 2 rows, 2/3.
    scores = compute_metrics(task, logits_of([0, 0, 0, 2], k=3), np.array([0, 0, 2, 2]))
    assert scores == {"ACC": 75.0, "F1MAC": pytest.approx(100 * (4 / 5 + 2 / 3) / 2)}, "class 1 is nowhere"
    scores = compute_metrics(task, logits_of([0, 0, 1, 2], k=3), np.array([0, 0, 2, 2]))
    assert scores["F1MAC"] == pytest.approx(100 * (1 + 0 + 2 / 3) / 3)
    assert task.primary_metric is Metric.F1MAC


def test_perfect_and_inverted(pair_task: TaskDef, score_task: TaskDef) -> None:
    labels = np.array([0, 1, 1, 0])
    assert compute_metrics(pair_task, logits_of([0, 1, 1, 0]), labels) == {"ACC": 100, "F1": 100, "MCC": 100}
    assert compute_metrics(pair_task, logits_of([1, 0, 0, 1]), labels) == {"ACC": 0, "F1": 0, "MCC": -100}
    scores = compute_metrics(score_task, -np.arange(5.0, dtype=np.float32)[:, None], np.arange(5, dtype=np.float32))
    assert scores == {"Pearson": pytest.approx(-100), "Spearman": pytest.approx(-100)}


def test_constant_predictions_keep_the_librarys_value_without_a_warning(
    pair_task: TaskDef, score_task: TaskDef
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = compute_metrics(pair_task, logits_of([0] * 4), np.array([0, 1, 1, 1]))
        assert scores == {"ACC": 25.0, "F1": 0.0, "MCC": 0.0}
        scores = compute_metrics(score_task, np.full((4, 1), 2.0, np.float32), np.arange(4, dtype=np.float32))
        assert np.isnan(list(scores.values())).tolist() == [True, True]


@pytest.mark.parametrize("task", ["pair_task", "score_task"])
def test_nan_stays_nan(task: str, request: pytest.FixtureRequest) -> None:
    definition: TaskDef = request.getfixturevalue(task)
    logits = np.ones((4, definition.n_class), np.float32)
    logits[1, 0] = np.nan
    scores = compute_metrics(definition, logits, np.array([0, 1, 0, 1]))
    assert list(scores) == [str(metric) for metric in definition.metric_meta]
    assert all(np.isnan(value) for value in scores.values())


def test_one_row_has_no_correlation(score_task: TaskDef) -> None:
    scores = compute_metrics(score_task, np.ones((1, 1)), np.ones(1))
    assert all(np.isnan(value) for value in scores.values())


def test_predictions(pair_task: TaskDef, score_task: TaskDef) -> None:
    assert predictions(pair_task, np.array([[0.1, 0.2], [3.0, -1.0]])).tolist() == [1, 0]
    assert predictions(score_task, np.array([[0.5], [2.5]])).tolist() == [0.5, 2.5]
    with pytest.raises(ValueError, match=r"wants \(N, 2\)"):
        predictions(pair_task, np.ones((3, 1)))


def test_shapes_are_checked(pair_task: TaskDef) -> None:
    with pytest.raises(ValueError, match="equally many"):
        compute_metrics(pair_task, np.ones((3, 2)), np.ones(2))
    with pytest.raises(ValueError, match="at least one"):
        compute_metrics(pair_task, np.ones((0, 2)), np.ones(0))
