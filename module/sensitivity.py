"""Statistics of sensitivities: PATS's logged metrics, and the histogram of its Figure 2.

The sensitivity of an entry is the moving average of ``|theta * gradient|`` (Equation 2), in units of the loss. To see
that of plain Adamax, run PATSAdamax with ``noise_scale=0``: the same numbers, and the sensitivities beside them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .noise import MASK_LEVELS, mask_threshold
from .pats_rule import PATSRule

SAMPLES = 200_000  # entries looked at on a logging step
QUANTILES = (0.1, 0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Observation:
    """One perturbed tensor after a step."""

    rule: PATSRule
    lr: float
    """Learning rate of the step."""
    mean: float
    """Mean sensitivity of the tensor."""
    sensitivity: Tensor
    """Sensitivities, float32."""
    adamax: tuple[Tensor, Tensor, Tensor, float, float] | None = None
    """Momentum, infinity norm, parameter, eps and decay, from which the update's size follows; None: unknown."""


def noise_statistics(observations: Sequence[Observation], samples: int = SAMPLES) -> dict[str, float]:
    """Summarise the last step's noise from an evenly spaced sample of the entries.

    Args:
        observations: The perturbed tensors. Empty before the first step.
        samples: About how many entries to look at over all tensors.

    Returns:
        ``spared``: share of entries that the threshold keeps from noise, in [0, 1]; ``ratio_q10`` to ``ratio_q99``:
        quantiles of mean/sensitivity; ``noise_norm``: root of the expected squared norm of the noise of a step;
        ``noise_over_update``: that over the norm of Adamax's update, where it is known. Empty without observations.
    """
    if not observations:
        return {}
    total = sum(o.sensitivity.numel() for o in observations)
    stride = _stride(total, samples)
    model_mean = math.fsum(o.mean * o.sensitivity.numel() for o in observations) / max(total, 1)
    ratios, kept, noise, update, has_update = [], 0, 0.0, 0.0, True
    sampled = iter(
        _samples([tensor for o in observations for tensor in (o.sensitivity, *(o.adamax or ())[:3])], stride)
    )
    for o in observations:
        mean = o.mean if o.rule.mean_scope == "tensor" else model_mean
        sensitivity = next(sampled)
        ratio, open_ = o.rule.opened(mean, sensitivity)
        probability = mask_threshold(o.rule.noise_probability) / MASK_LEVELS
        noise += (
            probability * o.rule.amplitude(o.lr) ** 2 * float(np.sum(np.square(np.minimum(ratio, o.rule.cap)[open_])))
        )
        kept += int(open_.sum())
        ratios.append(ratio)
        if o.adamax is None:
            has_update = False
        else:
            eps, decay = o.adamax[3:]
            momentum, norm, theta = (next(sampled) for _ in range(3))
            direction = momentum / (norm + eps) + decay * theta
            update += o.lr**2 * float(np.sum(np.square(direction)))
    sample = np.concatenate(ratios)
    scale = total / max(sample.size, 1)  # from the sample to all entries
    result = {"spared": 1.0 - kept / max(sample.size, 1), "noise_norm": math.sqrt(noise * scale)}
    for q, value in zip(QUANTILES, np.quantile(sample, QUANTILES), strict=True):
        result[f"ratio_q{round(100 * q)}"] = float(value)
    if has_update and update > 0.0:
        result["noise_over_update"] = math.sqrt(noise / update)
    return result


def sensitivity_histogram(
    sensitivities: Iterable[Tensor], low: float = 5e-8, high: float = 1e-5, bins: int = 60
) -> tuple[np.ndarray, np.ndarray]:
    """Count sensitivities in logarithmic bins, as in the paper's Figure 2.

    Args:
        sensitivities: One tensor per parameter, any shapes.
        low: Lower edge, above 0.
        high: Upper edge, above ``low``.
        bins: Number of bins between them.

    Returns:
        Counts, int64 (bins + 2,), the first below ``low`` and the last from ``high`` on, so that they add up to the
        number of entries; and the edges, float64 (bins + 1,).

    Raises:
        ValueError: If the edges are not in order.
    """
    if not 0.0 < low < high:
        raise ValueError(f"Invalid edges: {low}, {high}: 0 < low < high is needed")
    edges = np.geomspace(low, high, bins + 1)
    counts = np.zeros(bins + 2, np.int64)
    for tensor in sensitivities:
        place = np.searchsorted(edges, tensor.detach().cpu().numpy().ravel(), side="right")
        counts += np.bincount(place, minlength=bins + 2)
    return counts, edges


def sensitivity_moments(sensitivities: Iterable[Tensor]) -> tuple[float, float]:
    """Return the mean and the (population) standard deviation over all entries, the latter drawn in Figure 3."""
    n, total, squares = 0, 0.0, 0.0
    for tensor in sensitivities:
        values = tensor.detach().to(torch.float64)
        n += values.numel()
        total += float(values.sum())
        squares += float(values.square().sum())
    if n == 0:
        return math.nan, math.nan
    mean = total / n
    return mean, math.sqrt(max(squares / n - mean * mean, 0.0))


def _stride(total: int, samples: int) -> int:
    # Coprime to 2, 3 and 5, so that no column of a weight matrix is seen more often than others.
    stride = max(1, total // samples)
    while math.gcd(stride, 30) != 1:
        stride += 1
    return stride


def _samples(tensors: Sequence[Tensor], stride: int) -> list[np.ndarray]:
    """Every stride-th entry of each tensor, float64, brought to the CPU at once."""
    parts = [tensor.detach().reshape(-1)[::stride].to(tensors[0].device, torch.float64) for tensor in tensors]
    together = torch.cat(parts).cpu().numpy()
    return np.split(together, np.cumsum([part.numel() for part in parts])[:-1])


def numbers(scalars: Sequence[Tensor]) -> list[float]:
    """Return the values of tensors of one entry; from a device they come at once."""
    if not scalars:
        return []
    values: list[float] = torch.stack([scalar.reshape(()).to(scalars[0].device) for scalar in scalars]).tolist()
    return values
