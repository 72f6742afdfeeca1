"""Stochastic weight averaging (Izmailov et al., UAI 2018, arXiv 1803.05407): the plain mean of late weights."""

from dataclasses import dataclass

from .parts.averaging import WeightAveraging, check_start


@dataclass(frozen=True, slots=True)
class SWASettings:
    """Settings of the mean of late weights.

    Raises:
        ValueError: If one is out of its range.
    """

    start_step: int = 0
    """Optimizer steps before the first that counts, at least 0."""
    start_epoch: int = 1
    """Epochs before the first step that counts, at least 0; the later of both starts holds. Ours."""
    interval: int = 1
    """Steps from one that counts to the next, at least 1. The paper: as many as an epoch has."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_start(self)
        if self.interval < 1:
            raise ValueError(f"Invalid interval: {self.interval}: a whole number of at least 1 is needed")


class SWA(WeightAveraging):
    """``average <- average + (theta - average) / (n + 1)`` after the n weights that counted before."""

    name = "swa"
    Settings = SWASettings

    def weight(self, count: int) -> float:
        """One of ``count`` + 1."""
        return 1.0 / (count + 1)

    def counts(self, steps: int) -> bool:
        """Every ``interval``-th step."""
        return steps % int(self.settings.interval) == 0
