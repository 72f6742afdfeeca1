"""PATS (EMNLP 2022, arXiv 2210.12403): noise on insensitive parameters after every step."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..context import MethodContext
from ..method import FineTuningMethod, OptimizerSettings, own_groups, plain_optimizer
from ..pats_rule import PATSRule

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from ..pats import PATS as Attachment


class PATS(FineTuningMethod):
    """PATSAdamax; or, on AdamW and on SAGE's optimizer, the same rule attached to it."""

    name = "pats"
    Settings = PATSRule

    def __init__(self, settings: PATSRule | None = None) -> None:
        super().__init__(settings)
        self._attachment: Attachment | None = None

    def make_optimizer(
        self, groups: Sequence[dict[str, Any]], settings: OptimizerSettings, made: "Optimizer | None" = None
    ) -> "Optimizer":
        """Build the optimizer."""
        from ..bert_optim import PATSAdamax
        from ..pats import PATS as Attachment

        switches = asdict(self.settings)
        if made is None and settings.optimizer == "adamax":
            return PATSAdamax(
                own_groups(groups), **settings.adamax_arguments(), noise_seed=settings.noise_seed, **switches
            )
        named = [pair for group in groups for pair in group["params"]]
        optimizer = made or plain_optimizer(groups, settings)
        self._attachment = Attachment(named, noise_seed=settings.noise_seed, **switches).attach(optimizer)
        return optimizer

    def metrics(self, context: MethodContext) -> dict[str, float]:
        """Return the share of entries spared, quantiles of the ratio, and the size of the noise."""
        from ..bert_optim import PATSAdamax
        from ..pats import PATS as Attachment
        from ..sensitivity import noise_statistics

        source = self._attachment or context.optimizer
        assert isinstance(source, Attachment | PATSAdamax)
        if self._attachment:
            self._attachment.check_refused()
        return noise_statistics(source.observations())
