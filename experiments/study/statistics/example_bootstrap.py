"""A task's own metric on many bootstrap samples of its dev examples, for many runs at once.

A bootstrap sample is how often it holds each example. Every metric of ``data_utils.metrics`` is a function of a few
sums over the examples, so weighted sums, which are one matrix product, take the place of a loop over samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_utils.task_def import Metric

Scorer = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""(R, N) weights -> (R, S) scores in percent."""

_BATCH = 4_000_000  # weights at a time: 32 MB
_REGRESSION = (Metric.Pearson, Metric.Spearman)


def is_regression(metric: Metric) -> bool:
    """Whether the metric scores numbers, not classes."""
    return metric in _REGRESSION


def resampled_scores(
    metric: Metric, predicted: NDArray[Any], labels: NDArray[Any], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Score S runs on the same bootstrap samples of N examples.

    Args:
        metric: What to compute.
        predicted: (S, N) classes or numbers.
        labels: (N,).
        resamples: Number R of samples.
        rng: Draws them; runs scored with equal generators are scored on equal samples.

    Returns:
        (R, S) percent; a value that the metric does not define is what ``data_utils.metrics`` gives for it.
    """
    n = len(labels)
    score = make_scorer(metric, predicted, labels)
    done, parts = 0, []
    while done < resamples:
        rows = min(resamples - done, max(1, _BATCH // n))
        drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        weights = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        parts.append(score(weights.astype(np.float64)))
        done += rows
    return np.concatenate(parts)


def make_scorer(metric: Metric, predicted: NDArray[Any], labels: NDArray[Any]) -> Scorer:
    """Prepare the sums that a metric needs.

    Args:
        metric: What to compute.
        predicted: (S, N) classes or numbers.
        labels: (N,).
    """
    if metric is Metric.ACC:
        return _accuracy(predicted, labels)
    if metric is Metric.F1:
        return _f1(predicted, labels)
    if metric is Metric.F1MAC:
        return _macro_f1(predicted, labels)
    if metric is Metric.MCC:
        return _matthews(predicted, labels)
    return _pearson(predicted, labels) if metric is Metric.Pearson else _spearman(predicted, labels)


def _accuracy(predicted: NDArray[Any], labels: NDArray[Any]) -> Scorer:
    right = (predicted == labels).T.astype(np.float64)  # (N, S)
    return lambda weights: 100.0 * (weights @ right) / weights.sum(axis=1, keepdims=True)


def _f1(predicted: NDArray[Any], labels: NDArray[Any]) -> Scorer:
    """2 TP / (predicted positives + positives) of class 1; 0 where there is neither, as scikit-learn has it."""
    true = (labels == 1).astype(np.float64)[:, None]  # (N, 1)
    positive = (predicted == 1).T.astype(np.float64)  # (N, S)
    hits = positive * true

    def score(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        below = weights @ positive + weights @ true
        return 100.0 * _ratio(2.0 * (weights @ hits), below)

    return score


def _macro_f1(predicted: NDArray[Any], labels: NDArray[Any]) -> Scorer:
    """The mean F1 of the classes that a run predicts or a sample holds, as scikit-learn has it."""
    classes = np.union1d(predicted, labels)
    guesses = [(predicted == k).T.astype(np.float64) for k in classes]  # (N, S) each
    truths = [(labels == k).astype(np.float64)[:, None] for k in classes]  # (N, 1) each

    def score(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        totals = [weights @ guess + weights @ truth for guess, truth in zip(guesses, truths, strict=True)]
        hits = [weights @ (guess * truth) for guess, truth in zip(guesses, truths, strict=True)]
        summed = np.sum([_ratio(2.0 * hit, below) for hit, below in zip(hits, totals, strict=True)], axis=0)
        return np.asarray(100.0 * summed / np.sum([below > 0 for below in totals], axis=0))

    return score


def _matthews(predicted: NDArray[Any], labels: NDArray[Any]) -> Scorer:
    """Gorodkin's form for K classes (2004): (c s - Σ p t) / sqrt((s² - Σ p²)(s² - Σ t²)); 0 where that is 0 / 0.

    c examples are right, s is their number, and class k has p_k predictions and t_k examples.
    """
    classes = np.union1d(predicted, labels)
    right = (predicted == labels).T.astype(np.float64)  # (N, S)
    guesses = [(predicted == k).T.astype(np.float64) for k in classes]
    truths = [(labels == k).astype(np.float64)[:, None] for k in classes]

    def score(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        s = weights.sum(axis=1, keepdims=True)
        above = (weights @ right) * s  # (R, S)
        not_guessed, not_true = np.broadcast_to(s**2, above.shape).copy(), s**2
        for guess, truth in zip(guesses, truths, strict=True):
            p, t = weights @ guess, weights @ truth  # (R, S), (R, 1)
            above -= p * t
            not_guessed -= p**2
            not_true = not_true - t**2
        below = np.sqrt(not_guessed * not_true)
        return 100.0 * _ratio(above, below)

    return score


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quotient; 0 where the denominator is 0."""
    ratio: NDArray[np.float64] = np.divide(above, below, out=np.zeros_like(below), where=below > 0)
    return ratio


def _pearson(predicted: NDArray[Any], labels: NDArray[Any]) -> Scorer:
    x, y = _centred(predicted).T, _centred(labels[None, :]).T  # (N, S), (N, 1)
    xx, xy, yy = x * x, x * y, y * y

    def score(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        n = weights.sum(axis=1, keepdims=True)
        mean_x, mean_y = weights @ x / n, weights @ y / n
        covariance = weights @ xy / n - mean_x * mean_y
        variances = (weights @ xx / n - mean_x**2) * (weights @ yy / n - mean_y**2)
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation: NDArray[np.float64] = 100.0 * covariance / np.sqrt(variances)
        return correlation

    return score


def _centred(values: NDArray[Any]) -> NDArray[np.float64]:
    """(S, N) in float64, about zero, so that sums of squares keep their digits; constant rows become exactly zero."""
    shifted = values.astype(np.float64) - values[:, :1].astype(np.float64)
    return np.asarray(shifted - shifted.mean(axis=1, keepdims=True))


def _spearman(predicted: NDArray[Any], labels: NDArray[Any]) -> Scorer:
    """Pearson's correlation of the ranks within each sample, ties sharing their mean rank."""

    def score(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        n = weights.sum(axis=1)
        y = _weighted_ranks(labels, weights) - (n[:, None] + 1) / 2
        columns = []
        for one in predicted:
            x = _weighted_ranks(one, weights) - (n[:, None] + 1) / 2
            covariance, squares = (weights * x * y).sum(axis=1), (weights * x * x).sum(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                columns.append(100.0 * covariance / np.sqrt(squares * (weights * y * y).sum(axis=1)))
        return np.stack(columns, axis=1)

    return score


def _weighted_ranks(values: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, N) 1-based mean rank that each value has in a sample which holds it ``weights`` times."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    of_group = np.add.reduceat(weights[:, order], first, axis=1)  # (R, distinct values)
    ranks = np.cumsum(of_group, axis=1) - (of_group - 1) / 2
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.repeat(np.arange(len(first)), np.diff([*first, len(values)]))
    return np.asarray(ranks[:, group])
