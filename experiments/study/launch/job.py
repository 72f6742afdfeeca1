"""One run to compute, with its cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mt_dnn.config import RunConfig


@dataclass(frozen=True, slots=True)
class Job:
    """One run to compute."""

    config: RunConfig
    folder: Path
    steps: int
    """Expected optimizer steps, for the display."""
    cost: float
    """Expected work in any unit: the costliest runs start first."""
    trials: int = 1
    """Settings that were tried to find this run's."""
    note: str = ""
    """A mark that tells runs of one task, encoder, method and seed apart, such as the settings of a trial."""

    @property
    def label(self) -> str:
        """The run in words."""
        c = self.config
        part = "" if c.train_fraction is None else f"train_fraction={c.train_fraction:g}"
        return " ".join(filter(None, (c.task, c.encoder, c.method, part, f"seed={c.seed}", self.note)))
