"""Stochastic weight averaging (Izmailov et al., UAI 2018, arXiv 1803.05407): the plain mean of late weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..checks import CheckedSettings, WholeNumber, at_least
from .parts.averaging import WeightAveraging


@dataclass(frozen=True, slots=True)
class SWASettings(CheckedSettings):
    """Settings of the mean of late weights."""

    start_step: WholeNumber = 0
    """Optimizer steps before the first that counts, at least 0."""
    start_epoch: WholeNumber = 1
    """Epochs before the first step that counts, at least 0; the later of both starts holds. Ours."""
    interval: Annotated[int, at_least(1, "a whole number")] = 1
    """Steps from one that counts to the next, at least 1. The paper: as many as an epoch has."""


class SWA(WeightAveraging[SWASettings]):
    """``average <- average + (theta - average) / (n + 1)`` after the n weights that counted before."""

    name = "swa"
    title = "SWA"

    def weight(self, count: int) -> float:
        """Return 1 / (count + 1)."""
        return 1.0 / (count + 1)

    def counts(self, steps: int) -> bool:
        """Whether a step is an ``interval``-th one."""
        return steps % self.settings.interval == 0
