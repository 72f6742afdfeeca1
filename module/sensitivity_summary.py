"""The distribution of a fine-tuned encoder's sensitivities: histograms and measures of concentration.

The paper says that sensitivities are "more tightly clustered" after PATS, that fewer parameters are insensitive, and
that it is no longer a few that dominate. It gives no number for any of the three; these are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

PAPER_RANGE = (5e-8, 1e-5, 60)
"""Low and high edge and number of bins of the paper's Figure 2; the number is ours."""
FULL_RANGE = (1e-16, 1.0, 160)
"""The same of the whole distribution: ten bins per decade. The entropy is of this histogram."""
TOP_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """Sensitivities of one parameter tensor."""

    path: str
    """``layer.<i>.<suffix>``."""
    n: int
    mean: float


@dataclass(frozen=True, slots=True)
class SensitivitySummary:
    """All sensitivities of one fine-tuned encoder; s is an entry, units of the loss."""

    beta: float
    """Of the moving average."""
    n: int
    """Entries: weights and biases of the encoder layers that had a gradient."""
    mean: float
    std: float
    """Population standard deviation over all entries; depends on the scale of s."""
    std_in_range: float
    """That of the entries in the paper's range alone; NaN where there is none."""
    median: float
    std_log10: float
    """Standard deviation of log10 s over the entries above 0, in decades."""
    gini: float
    """Gini coefficient in [0, 1): 0 all equal, towards 1 a single entry holds everything."""
    entropy: float
    """Shannon entropy of the full histogram with its two open ends, in bits: at most log2(162) = 7.34."""
    top_share: float
    """Share of the sum of s that the largest hundredth of the entries holds."""
    below_range: float
    """Share of entries below the paper's range."""
    above_range: float
    """Share of entries above it."""
    paper_counts: tuple[int, ...]
    """(62,) below, the bins of ``PAPER_RANGE``, above."""
    full_counts: tuple[int, ...]
    """(162,) below, the bins of ``FULL_RANGE``, above."""
    tensors: tuple[TensorSummary, ...]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SensitivitySummary:
        """Make a summary from the values of ``dataclasses.asdict``.

        Raises:
            TypeError: A field is missing or unknown.
        """
        tensors = tuple(TensorSummary(**tensor) for tensor in values["tensors"])
        counts = {key: tuple(values[key]) for key in ("paper_counts", "full_counts")}
        return cls(**{**values, **counts, "tensors": tensors})


def summarise(sensitivities: Mapping[str, Tensor], beta: float) -> SensitivitySummary:
    """Describe the sensitivities of an encoder.

    Args:
        sensitivities: Path -> tensor of any shape, at least one entry in all.
        beta: Of their moving average, for the record.

    Raises:
        ValueError: If there is no entry.
    """
    from .sensitivity import sensitivity_histogram, sensitivity_moments

    tensors = {path: tensor.detach().float().cpu().reshape(-1) for path, tensor in sensitivities.items()}
    if not sum(tensor.numel() for tensor in tensors.values()):
        raise ValueError("no sensitivities to describe: no parameter of the encoder layers had a gradient")
    paper, _ = sensitivity_histogram(tensors.values(), *PAPER_RANGE)
    full, _ = sensitivity_histogram(tensors.values(), *FULL_RANGE)
    mean, std = sensitivity_moments(tensors.values())
    ordered = np.concatenate([tensor.numpy() for tensor in tensors.values()])
    ordered.sort()
    n, total = ordered.size, float(ordered.sum(dtype=np.float64))
    low, high = np.searchsorted(ordered, PAPER_RANGE[:2], side="left")
    inside = ordered[low:high]
    logarithms = np.log10(ordered[np.searchsorted(ordered, 0.0, side="right") :])
    largest = ordered[n - math.ceil(n * TOP_SHARE) :]
    return SensitivitySummary(
        beta=beta,
        n=n,
        mean=mean,
        std=std,
        std_in_range=float(inside.std(dtype=np.float64)) if inside.size else math.nan,
        median=float(np.median(ordered)),
        std_log10=float(logarithms.std(dtype=np.float64)) if logarithms.size else math.nan,
        gini=gini(ordered),
        entropy=entropy(full),
        top_share=float(largest.sum(dtype=np.float64)) / total if total else math.nan,
        below_range=float(low) / n,
        above_range=float(n - high) / n,
        paper_counts=tuple(map(int, paper)),
        full_counts=tuple(map(int, full)),
        tensors=tuple(
            TensorSummary(path, tensor.numel(), sensitivity_moments([tensor])[0]) for path, tensor in tensors.items()
        ),
    )


def gini(ordered: npt.NDArray[Any]) -> float:
    """Gini coefficient: half the mean absolute difference of two entries, over the mean.

    Args:
        ordered: (n,) entries at least 0, in ascending order.

    Returns:
        ``2 sum_i i x_i / (n sum x) - (n + 1) / n`` with i from 1, in [0, (n - 1) / n]; NaN without a positive entry.
    """
    n, chunk = ordered.size, 1 << 22
    weighted = total = 0.0
    for start in range(0, n, chunk):  # a float64 copy of a large encoder's entries would be gigabytes
        part = ordered[start : start + chunk].astype(np.float64)
        weighted += float(part @ np.arange(start + 1, start + 1 + part.size, dtype=np.float64))
        total += float(part.sum())
    return 2.0 * weighted / (n * total) - (n + 1) / n if total > 0.0 else math.nan


def entropy(counts: Sequence[int] | npt.NDArray[np.int64]) -> float:
    """Shannon entropy of a histogram, ``-sum p log2 p``, in bits; an empty bin adds 0. NaN without a count."""
    values = np.asarray(counts, np.float64)
    if values.sum() == 0.0:
        return math.nan
    p = values[values > 0.0] / values.sum()
    return max(0.0, float(-(p * np.log2(p)).sum()))


def bin_edges(low: float, high: float, bins: int) -> npt.NDArray[np.float64]:
    """(bins + 1,) the logarithmic edges of :func:`module.sensitivity.sensitivity_histogram`."""
    edges: npt.NDArray[np.float64] = np.geomspace(low, high, bins + 1)
    return edges
