"""The ablation of PATS: for the same weights as much noise, not where the sensitivities say."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..context import MethodContext
from ..method import FineTuningMethod, OptimizerSettings, Resource, plain_optimizer
from ..pats_rule import PATSRule

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from .noise_spread import SpreadNoise


@dataclass(frozen=True, slots=True)
class MatchedNoiseSettings(PATSRule):
    """The rule whose amount of noise is matched, and where the noise goes instead.

    Raises:
        ValueError: If a value is out of range.
    """

    spread: Literal["uniform", "shuffled"] = "uniform"
    """One size for all entries of a tensor, of the same expected squared norm; or PATS's sizes, each on another entry
    of the tensor than the one it was worked out for."""

    def __post_init__(self) -> None:
        """Check the values."""
        PATSRule.__post_init__(self)
        if self.spread not in ("uniform", "shuffled"):
            raise ValueError(f"Invalid spread: {self.spread!r}: one of uniform, shuffled is needed")


class MatchedNoise(FineTuningMethod):
    """PATS attached to the optimizer, with its noise spread otherwise."""

    name = "matched_noise"
    Settings = MatchedNoiseSettings
    exclusive = frozenset({Resource.FORWARD_WEIGHTS})

    def __init__(self, settings: MatchedNoiseSettings | None = None) -> None:
        super().__init__(settings)
        self._attachment: SpreadNoise | None = None

    def check_beside(self, others: Sequence[FineTuningMethod]) -> None:
        """Refuse PATS itself."""
        if any(other.name == "pats" for other in others):
            raise ValueError("Methods 'matched_noise' and 'pats': the one is the other's control: use separate runs")

    def make_optimizer(
        self, groups: Sequence[dict[str, Any]], settings: OptimizerSettings, made: "Optimizer | None" = None
    ) -> "Optimizer":
        """Build the optimizer, or take another method's, and attach the noise."""
        from .noise_spread import SpreadNoise

        named = [pair for group in groups for pair in group["params"]]
        optimizer = made or plain_optimizer(groups, settings)
        self._attachment = SpreadNoise(named, noise_seed=settings.noise_seed, **asdict(self.settings))
        self._attachment.attach(optimizer)
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return the sensitivities."""
        assert self._attachment is not None
        return self._attachment.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        assert self._attachment is not None
        self._attachment.load_state_dict(state)

    def metrics(self, context: MethodContext) -> dict[str, float]:
        """Return PATS's statistics; ``noise_norm`` is the same for the noise spread otherwise."""
        from ..sensitivity import noise_statistics

        assert self._attachment is not None
        return noise_statistics(self._attachment.observations())
