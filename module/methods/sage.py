"""SAGE (Liang et al., ICLR 2022): learning rates by sensitivity, as the authors' code has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ..checks import CheckedSettings, ShareBelow1, at_least
from ..lazy import bert_optim, torch
from ..method import FineTuningMethod, OptimizerSettings, Resource, own_groups


@dataclass(frozen=True, slots=True)
class SAGESettings(CheckedSettings):
    """Settings of SAGE."""

    sensitivity_beta: ShareBelow1 = 0.75
    """beta of the sensitivity's moving average, in [0, 1). The authors advise 0.6 to 0.9."""
    sensitivity_eps: Annotated[float, at_least(1e-37)] = 1e-12
    """Added to the sensitivity in the factor, above 0. The authors' code: 1e-6 squared."""


class SAGE(FineTuningMethod[SAGESettings]):
    """Adamax with SAGE's factor on the encoder layers."""

    name = "sage"
    title = "SAGE"
    exclusive = frozenset({Resource.UPDATE_RULE})
    rank = -10  # before PATS, which attaches to its optimizer

    def check_run(self, settings: OptimizerSettings) -> None:
        """Refuse another optimizer than Adamax.

        Raises:
            ValueError: If one is asked for.
        """
        if settings.optimizer != "adamax":
            raise ValueError(
                f"Method sage scales the step inside Adamax and has no form on {settings.optimizer!r}: use adamax"
            )

    def make_optimizer(
        self, groups: Sequence[dict[str, Any]], settings: OptimizerSettings, made: torch.optim.Optimizer | None = None
    ) -> torch.optim.Optimizer:
        """Build SAGEAdamax.

        Raises:
            ValueError: If another optimizer is asked for.
        """
        self.check_run(settings)
        return bert_optim.SAGEAdamax(
            own_groups(groups),
            **settings.adamax_arguments(),
            sensitivity_beta=self.settings.sensitivity_beta,
            sensitivity_eps=self.settings.sensitivity_eps,
        )
