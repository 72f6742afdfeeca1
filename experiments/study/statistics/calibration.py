"""Calibration of a classifier: how far its probabilities are from its right and wrong answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Of the expected calibration error, as in Guo et al. (2017)."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Three errors of the probabilities of N examples; 0 is best in each."""

    ece: float
    """Expected calibration error in percent: |accuracy - mean confidence| of each bin, weighted by its examples."""
    nll: float
    """Negative log-likelihood of the labels in nats, the mean over the examples."""
    brier: float
    """Brier score (1950) in [0, 2]: the mean squared distance from the label's one-hot vector."""


def calibration_of(logits: NDArray[Any], labels: NDArray[Any]) -> Calibration:
    """Measure the calibration of softmax(logits).

    The bins of the ECE are ((b - 1) / 15, b / 15] of the confidence, the largest probability (Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, Equations 2 and 3).

    Args:
        logits: (N, K), K >= 2, N >= 1.
        labels: (N,) classes in [0, K).
    """
    z = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)  # (N, K)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    p, rows = np.exp(log_p), np.arange(len(labels))
    confidence, right = p.max(axis=1), logits.argmax(axis=1) == labels  # (N,)
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    one_hot = np.zeros_like(p)
    one_hot[rows, labels] = 1.0
    return Calibration(
        ece=float(100.0 * np.abs(gaps).sum() / len(labels)),
        nll=float(-log_p[rows, labels].mean()),
        brier=float(np.square(p - one_hot).sum(axis=1).mean()),
    )
