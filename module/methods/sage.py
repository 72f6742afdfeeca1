"""SAGE (Liang et al., ICLR 2022): learning rates by sensitivity, as the authors' code has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..method import FineTuningMethod, OptimizerSettings, Resource, own_groups

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True, slots=True)
class SAGESettings:
    """Settings of SAGE."""

    sensitivity_beta: float = 0.75
    """beta of the sensitivity's moving average, in [0, 1). The authors advise 0.6 to 0.9."""
    sensitivity_eps: float = 1e-12
    """Added to the sensitivity in the factor, above 0. The authors' code: 1e-6 squared."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.sensitivity_beta < 1.0:
            raise ValueError(f"Invalid sensitivity_beta: {self.sensitivity_beta}: a number in [0, 1) is needed")
        if not 1e-37 <= self.sensitivity_eps < float("inf"):
            raise ValueError(f"Invalid sensitivity_eps: {self.sensitivity_eps}: a number of at least 1e-37 is needed")


class SAGE(FineTuningMethod):
    """Adamax with SAGE's factor on the encoder layers."""

    name = "sage"
    Settings = SAGESettings
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
        self, groups: Sequence[dict[str, Any]], settings: OptimizerSettings, made: "Optimizer | None" = None
    ) -> "Optimizer":
        """Build SAGEAdamax.

        Raises:
            ValueError: If another optimizer is asked for.
        """
        self.check_run(settings)
        from ..bert_optim import SAGEAdamax

        own: SAGESettings = self.settings
        return SAGEAdamax(
            own_groups(groups),
            **settings.adamax_arguments(),
            sensitivity_beta=own.sensitivity_beta,
            sensitivity_eps=own.sensitivity_eps,
        )
