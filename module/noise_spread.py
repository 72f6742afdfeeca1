"""PATS's noise without its aim: as much of it, spread evenly or over the wrong entries. Controls of an ablation."""

import numpy as np
import torch
from torch import Tensor

from .pats_rule import PATSRule
from .seeds import stream_seed

SPREADS = ("sensitivity", "uniform", "shuffled")


def spread_evenly(rows: np.ndarray, sensitivities: list[Tensor], rule: PATSRule) -> None:
    """Give every entry of a tensor the root mean square of what PATS would give them.

    With sigma_j of Equation 4, every entry gets (mean of sigma_j^2)^(1/2): the expected squared norm of a tensor's
    noise is PATS's.

    Args:
        rows: Perturbed rows of the kernel's table with everything of PATS filled in; changed in place.
        sensitivities: Their sensitivities, any shape, float32.
        rule: The rule of PATS.
    """
    for row, sensitivity in zip(rows, sensitivities, strict=True):
        ratio = float(row["mean"]) / (sensitivity + rule.sensitivity_eps)
        upper, lower = rule.limits(float(row["mean"]))
        open_ = (sensitivity < upper) & (ratio >= lower)
        capped = ratio if rule.max_ratio is None else ratio.clamp(max=rule.max_ratio)
        even = capped.masked_fill_(~open_, 0.0).square_().mean(dtype=torch.float64).sqrt()
        # The kernel takes the smaller of mean / sensitivity and the cap: the cap, everywhere.
        row["mean"], row["max_ratio"], row["upper"], row["lower"] = np.inf, float(even), np.inf, -np.inf


def misplaced(sensitivity: Tensor, seed: int, path: str) -> Tensor:
    """Return the sensitivities of a tensor moved along by an offset that is fixed for the run.

    Noise by these has PATS's sizes, each on another entry than the one it was worked out for.

    Args:
        sensitivity: Of a tensor, any shape.
        seed: Seed of the noise stream.
        path: The tensor's path.

    Returns:
        A copy, flat.
    """
    n = sensitivity.numel()
    offset = 1 + stream_seed(seed, f"spread/{path}") % (n - 1) if n > 1 else 0
    return sensitivity.flatten().roll(offset)
