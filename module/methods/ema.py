"""Exponential moving average of the weights (Polyak and Juditsky 1992 with forgetting)."""

from dataclasses import dataclass

from .parts.averaging import WeightAveraging, check_start


@dataclass(frozen=True, slots=True)
class EMASettings:
    """Settings of the moving average.

    Raises:
        ValueError: If one is out of its range.
    """

    decay: float = 0.995
    """Share of the old average in the new one, per step, in [0, 1): it looks back about 1 / (1 - decay) steps. Ours."""
    start_step: int = 0
    """Optimizer steps before the first that counts, at least 0."""
    start_epoch: int = 0
    """Epochs before the first step that counts, at least 0; the later of both starts holds."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"Invalid decay: {self.decay}: a number in [0, 1) is needed")
        check_start(self)


class EMA(WeightAveraging):
    """``average <- decay average + (1 - decay) theta`` after each step, from the first weights that count on."""

    name = "ema"
    is_control = True  # of SMART, whose teacher is such an average
    Settings = EMASettings

    def weight(self, count: int) -> float:
        """1 - decay."""
        return 1.0 - float(self.settings.decay)
