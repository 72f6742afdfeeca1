"""PATS (EMNLP 2022, arXiv 2210.12403): noise on insensitive parameters after every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..context import MethodContext
from ..lazy import bert_optim, pats, sensitivity, torch
from ..method import FineTuningMethod, OptimizerSettings, own_groups, plain_optimizer
from ..pats_rule import PATSRule


class PATSMethod(FineTuningMethod[PATSRule]):
    """PATSAdamax; or, on AdamW and on SAGE's optimizer, the same rule attached to it."""

    name = "pats"
    title = "PATS"

    def __init__(self, settings: PATSRule | None = None) -> None:
        super().__init__(settings)
        self._attachment: pats.PATS | None = None

    def make_optimizer(
        self, groups: Sequence[dict[str, Any]], settings: OptimizerSettings, made: torch.optim.Optimizer | None = None
    ) -> torch.optim.Optimizer:
        """Build the optimizer."""
        switches = asdict(self.settings)
        if made is None and settings.optimizer == "adamax":
            return bert_optim.PATSAdamax(
                own_groups(groups), **settings.adamax_arguments(), noise_seed=settings.noise_seed, **switches
            )
        named = [pair for group in groups for pair in group["params"]]
        optimizer = made or plain_optimizer(groups, settings)
        self._attachment = pats.PATS(named, noise_seed=settings.noise_seed, **switches).attach(optimizer)
        return optimizer

    def metrics(self, context: MethodContext) -> dict[str, float]:
        """Return the share of entries spared, quantiles of the ratio, and the size of the noise."""
        source = self._attachment or context.optimizer
        assert isinstance(source, pats.PATS | bert_optim.PATSAdamax)
        if self._attachment:
            self._attachment.check_refused()
        return sensitivity.noise_statistics(source.observations())
