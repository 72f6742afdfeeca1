r"""Distances of two predictions by MT-DNN's names, as its ``adv_loss`` has them.

Legend: B examples, K classes; p = softmax(logits), q = softmax(other), :math:`[\cdot]` without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Criterion = Literal["MseCriterion", "KlCriterion", "SymKlCriterion", "NsKlCriterion", "NsSymKlCriterion", "JSCriterion"]

_EPS = 1e-6


def mse(logits: Tensor, other: Tensor) -> Tensor:
    """Squared difference of the outputs, the mean over a prediction's outputs."""
    return F.mse_loss(logits, other, reduction="sum") / logits.shape[-1]


def kl(logits: Tensor, other: Tensor) -> Tensor:
    """KL(q || p), gradients into both."""
    log_p, log_q = F.log_softmax(logits, dim=-1), F.log_softmax(other, dim=-1)
    return (log_q.exp() * (log_q - log_p)).sum()


def symmetric_kl(logits: Tensor, other: Tensor) -> Tensor:
    """KL([q] || p) + KL([p] || q): the value of KL both ways, nearby half its gradient."""
    return kl(logits, other.detach()) + kl(other, logits.detach())


def ns_kl(logits: Tensor, other: Tensor) -> Tensor:
    """2 sum p ([r(p)] - [r(q)]), r(p) = -log(1 / (p + 1e-6) - 1 + 1e-6), near to the log-odds: no KL."""
    p = F.softmax(logits, dim=-1)
    return (2.0 * p * (_log_odds(p) - _log_odds(F.softmax(other, dim=-1)))).sum()


def ns_symmetric_kl(logits: Tensor, other: Tensor) -> Tensor:
    """:func:`ns_kl` both ways."""
    return ns_kl(logits, other) + ns_kl(other, logits)


def jensen_shannon(logits: Tensor, other: Tensor) -> Tensor:
    """KL([m] || p) + KL([m] || q), m = (p + q) / 2: the directions of MT-DNN's, which JS has the other way round."""
    log_p, log_q = F.log_softmax(logits, dim=-1), F.log_softmax(other, dim=-1)
    m = (0.5 * (log_p.exp() + log_q.exp())).detach()
    return (torch.xlogy(m, m) * 2.0 - m * (log_p + log_q)).sum()


def _log_odds(p: Tensor) -> Tensor:
    # 1 / (p + eps) - 1 + eps over one fraction: in float32 the difference would be 0 or below at p near 1.
    return -(((1.0 - p) * (1.0 - _EPS) + _EPS**2) / (p + _EPS)).log().detach()


_CRITERIA: Mapping[Criterion, Callable[[Tensor, Tensor], Tensor]] = {
    "MseCriterion": mse,
    "KlCriterion": kl,
    "SymKlCriterion": symmetric_kl,
    "NsKlCriterion": ns_kl,
    "NsSymKlCriterion": ns_symmetric_kl,
    "JSCriterion": jensen_shannon,
}


def distance(name: Criterion, logits: Tensor, other: Tensor) -> Tensor:
    """Distance of two predictions, summed over the examples; MT-DNN has the mean.

    Args:
        name: MT-DNN's.
        logits: (B, K).
        other: (B, K).

    Returns:
        (), in float32 at least.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    return _CRITERIA[name](logits.to(wide), other.to(wide))


def check_criterion(what: str, name: str, regression: bool) -> Criterion:
    """Return the name, but refuse one that has no form for a kind of task, or none with a gradient.

    Args:
        what: Where the name stands, for the message.
        name: Any of MT-DNN's.
        regression: Whether the task's one output is a score.

    Raises:
        ValueError: It has none.
    """
    if name == "HLCriterion":
        raise ValueError(f"{what} is HLCriterion, which has no gradient as MT-DNN writes it: use JSCriterion")
    if name not in _CRITERIA:
        raise ValueError(f"{what} is {name}, no distance of two predictions: use one of {', '.join(_CRITERIA)}")
    if regression and name != "MseCriterion":
        raise ValueError(f"{what} is {name}, a distance of classes, but the output is a score: use MseCriterion")
    return cast(Criterion, name)
