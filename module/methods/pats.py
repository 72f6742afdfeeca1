"""PATS (EMNLP 2022, arXiv 2210.12403): noise on insensitive parameters after every step."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from module.context import MethodContext
from module.method import FineTuningMethod, OptimizerSettings, own_groups, plain_optimizer
from module.pats_rule import PATSRule

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from module.pats import PATS as Attachment


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
        from module.bert_optim import PATSAdamax
        from module.pats import PATS as Attachment

        switches = asdict(self.settings)
        if made is None and settings.optimizer == "adamax":
            return PATSAdamax(
                own_groups(groups), **settings.adamax_arguments(), noise_seed=settings.noise_seed, **switches
            )
        named = [pair for group in groups for pair in group["params"]]
        optimizer = made or plain_optimizer(groups, settings)
        self._attachment = Attachment(named, noise_seed=settings.noise_seed, **switches).attach(optimizer)
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return the sensitivities if they are not in the optimizer's own state."""
        return self._attachment.state_dict() if self._attachment else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        if self._attachment:
            self._attachment.load_state_dict(state)

    def metrics(self, context: MethodContext) -> dict[str, float]:
        """Return the share of entries spared, quantiles of the ratio, and the size of the noise."""
        from module.bert_optim import PATSAdamax
        from module.pats import PATS as Attachment
        from module.sensitivity import noise_statistics

        source = self._attachment or context.optimizer
        assert isinstance(source, Attachment | PATSAdamax)
        if self._attachment:
            self._attachment.check_refused()
        return noise_statistics(source.observations())
