"""Distances of predictions that every loop measures alike.

Legend: B examples, K classes.
"""

import torch.nn.functional as F
from torch import Tensor


def divergence(logits: Tensor, other: Tensor, regression: bool) -> Tensor:
    """Distance of two predictions, summed over the examples.

    KL(p || q) + KL(q || p) of classes, p = softmax(logits) and q = softmax(other); the squared difference of scores.

    Args:
        logits: (B, K).
        other: (B, K); gradients flow into both, detach the one that shall stay.
        regression: Whether the outputs are a score.

    Returns:
        () float32, >= 0 up to rounding.
    """
    if regression:
        return F.mse_loss(logits.float(), other.float(), reduction="sum")
    log_p = F.log_softmax(logits.float(), dim=-1)
    log_q = F.log_softmax(other.float(), dim=-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum()
