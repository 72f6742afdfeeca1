"""Exponential moving average of the weights (Polyak and Juditsky 1992 with forgetting)."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import CheckedSettings, ShareBelow1, WholeNumber
from .parts.averaging import WeightAveraging


@dataclass(frozen=True, slots=True)
class EMASettings(CheckedSettings):
    """Settings of the moving average."""

    decay: ShareBelow1 = 0.995
    """Share of the old average in the new one, per step, in [0, 1): it looks back about 1 / (1 - decay) steps. Ours."""
    start_step: WholeNumber = 0
    """Optimizer steps before the first that counts, at least 0."""
    start_epoch: WholeNumber = 0
    """Epochs before the first step that counts, at least 0; the later of both starts holds."""


class EMA(WeightAveraging[EMASettings]):
    """``average <- decay average + (1 - decay) theta`` after each step, from the first weights that count on."""

    name = "ema"
    title = "EMA"
    is_control = True  # of SMART, whose teacher is such an average

    def weight(self, count: int) -> float:
        """Return 1 - decay."""
        return 1.0 - self.settings.decay
