"""R-Drop (Liang et al., NeurIPS 2021, arXiv 2106.14448): two passes with different dropout that agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checks import CheckedSettings, NonNegative
from ..context import MethodContext
from ..lazy import torch
from ..method import FineTuningMethod


@dataclass(frozen=True, slots=True)
class RDropSettings(CheckedSettings):
    """Settings of R-Drop."""

    alpha: NonNegative = 1.0
    """alpha, at least 0: weight of the distance of the two predictions. The paper on GLUE: 0.1, 0.5 or 1.0."""


class RDrop(FineTuningMethod[RDropSettings]):
    r"""``L = (CE1 + CE2) / 2 + alpha (KL(p1 || p2) + KL(p2 || p1)) / 2``, both means over the examples.

    The trainer's own loss is CE1, so the term here is ``(CE2 - CE1) / 2`` and the distance. A regression has squared
    errors for CE and the squared difference of the two scores for the mean of the two KL.

    The second pass draws its dropout apart, so the first one has plain fine-tuning's masks. Without dropout both are
    the same, and so is the gradient, to the last bit.
    """

    name = "rdrop"
    title = "R-Drop"

    def extra_loss(self, context: MethodContext, batch: Any, logits: torch.Tensor) -> torch.Tensor:
        """Make the second pass."""
        model = context.model
        with context.streams.apart(self.name):
            second = model.logits(batch)
        losses = (model.loss(second, batch) - model.loss(logits, batch)) / 2
        # The divergence is the sum of both KL, the squared difference is there once.
        factor = self.settings.alpha if logits.shape[-1] == 1 else self.settings.alpha / 2
        return losses + factor * model.divergence(logits, second)
