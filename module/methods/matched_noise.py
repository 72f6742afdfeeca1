"""The ablation of PATS: as much noise on the same tensors, on other entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..context import MethodContext
from ..lazy import pats, sensitivity, torch
from ..method import AnyMethod, FineTuningMethod, OptimizerSettings, Resource, plain_optimizer
from ..pats_rule import PATSRule


@dataclass(frozen=True, slots=True)
class MatchedNoiseSettings(PATSRule):
    """PATS's rule for the amount of noise, and the entries that get it instead."""

    spread: Literal["uniform", "shuffled"] = "uniform"
    """One size for all entries of a tensor, of the same expected squared norm; or PATS's sizes, each on another entry
    of the tensor than the one it was worked out for."""


class MatchedNoise(FineTuningMethod[MatchedNoiseSettings]):
    """PATS attached to the optimizer, with its noise on other entries."""

    name = "matched_noise"
    exclusive = frozenset({Resource.FORWARD_WEIGHTS})
    _attachment: pats.PATS  # from make_optimizer on

    def check_beside(self, others: Sequence[AnyMethod]) -> None:
        """Refuse PATS itself."""
        if any(other.name == "pats" for other in others):
            raise ValueError("Methods 'matched_noise' and 'pats': the one is the other's control: use separate runs")

    def check_device(self, device_type: str) -> None:
        """Refuse a GPU: no kernel there spreads noise over other entries.

        Raises:
            ValueError: On another device than the CPU.
        """
        if device_type != "cpu":
            raise ValueError(
                f"Method matched_noise has kernels for the CPU alone and the run is on {device_type}: use --device cpu "
                "(--devices cpu in a study)"
            )

    def make_optimizer(
        self, groups: Sequence[dict[str, Any]], settings: OptimizerSettings, made: torch.optim.Optimizer | None = None
    ) -> torch.optim.Optimizer:
        """Build the optimizer, or take another method's, and attach the noise."""
        from .parts.noise_spread import SpreadNoise  # its base class needs torch

        named = [pair for group in groups for pair in group["params"]]
        optimizer = made or plain_optimizer(groups, settings)
        self._attachment = SpreadNoise(named, noise_seed=settings.noise_seed, **asdict(self.settings))
        self._attachment.attach(optimizer)
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return the sensitivities."""
        return self._attachment.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of :meth:`state_dict`."""
        self._attachment.load_state_dict(state)

    def metrics(self, context: MethodContext) -> dict[str, float]:
        """Return PATS's statistics; ``noise_norm`` is the same on other entries."""
        return sensitivity.noise_statistics(self._attachment.observations())
