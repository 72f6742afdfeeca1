"""Scores of a task in percent, as scikit-learn and SciPy give them.

A degenerate prediction keeps the library's value (0 for MCC and F1, NaN for a correlation); nothing is put in its
place. The warnings that go with it are silenced, because a run's status says the same.
"""

import warnings
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_utils.task_def import Metric, TaskDef, TaskType


def predictions(task_def: TaskDef, logits: NDArray[np.floating[Any]]) -> NDArray[Any]:
    """Turn logits into predictions.

    Args:
        task_def: classification takes the largest logit, regression the only one.
        logits: (N, K).

    Returns:
        (N,) int64 class numbers, or (N,) values of the logits' dtype.

    Raises:
        ValueError: K is not the task's ``n_class``.
    """
    if logits.ndim != 2 or logits.shape[1] != task_def.n_class:
        raise ValueError(f"logits have shape {logits.shape}; task {task_def.name} wants (N, {task_def.n_class})")
    return logits[:, 0] if task_def.task_type is TaskType.Regression else logits.argmax(axis=1)


def compute_metrics(task_def: TaskDef, logits: NDArray[np.floating[Any]], labels: NDArray[Any]) -> dict[str, float]:
    """Score predictions with every metric of the task.

    Args:
        task_def: gives the metrics.
        logits: (N, K). A NaN among them makes every score NaN: the first class would otherwise win by accident.
        labels: (N,) class numbers or scores.

    Returns:
        Metric name -> score in percent ([-100, 100], or NaN), in the order of ``metric_meta``.

    Raises:
        ValueError: no rows, or shapes that do not belong together.
    """
    if len(labels) == 0 or len(labels) != len(logits):
        raise ValueError(f"{len(logits)} rows of logits and {len(labels)} labels; need equally many, at least one")
    predicted = predictions(task_def, logits)
    if np.isnan(logits).any():
        return {str(metric): float("nan") for metric in task_def.metric_meta}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {str(metric): 100.0 * _score(metric, predicted, labels) for metric in task_def.metric_meta}


def _score(metric: Metric, predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    # Imported here: the two libraries take about a second, and a command line or a first step needs neither.
    if metric in (Metric.ACC, Metric.F1, Metric.F1MAC, Metric.MCC):
        from sklearn import metrics

        score = {
            Metric.ACC: metrics.accuracy_score,
            Metric.F1: metrics.f1_score,
            Metric.F1MAC: partial(metrics.f1_score, average="macro"),
            Metric.MCC: metrics.matthews_corrcoef,
        }[metric]
        return float(score(labels, predicted))
    if len(labels) < 2:
        return float("nan")  # SciPy raises here; a correlation of one point is undefined
    from scipy import stats

    correlation = stats.pearsonr if metric is Metric.Pearson else stats.spearmanr
    # float64: float32 logits that differ in the last bits only would otherwise lose the correlation to rounding.
    return float(correlation(predicted.astype(np.float64), labels.astype(np.float64)).statistic)
