"""What the next step depends on beside weights, optimizer and method, as plain values for a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from mt_dnn.results import EpochScore


@dataclass(slots=True)
class TrainState:
    """Where a run stands between two steps."""

    step: int = 0
    """Optimizer steps made."""
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float32, device="cpu"))
    """Sum of the losses of the examples seen since the last log line; on the device, read only when logged."""
    loss_examples: int = 0
    """Their number."""
    best: EpochScore | None = None
    """The epoch with the highest dev score so far, the earlier of equals."""
    last: EpochScore | None = None
    """The newest evaluated epoch."""
    logits: dict[str, Tensor] = field(default_factory=dict)
    """``<dataset>.best_logits`` and ``<dataset>.last_logits`` -> (N, K)."""
    kept: dict[str, tuple[int, str]] = field(default_factory=dict)
    """``best`` and ``last`` -> epoch and SHA-256 of the weights that lie in the run's checkpoints under that name."""
    seconds: float = 0.0
    """Time spent, over all sessions."""
    sessions: int = 1
    """Processes that worked on the run."""

    def to_plain(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        values = {name: getattr(self, name) for name in self.__slots__}
        for key in ("best", "last"):
            values[key] = asdict(values[key]) if values[key] is not None else None
        return {**values, "loss_sum": self.loss_sum.cpu()}

    @classmethod
    def from_plain(cls, values: dict[str, Any], device: torch.device) -> TrainState:
        """Undo :meth:`to_plain`, one session on."""
        scores = {key: EpochScore(**values[key]) if values[key] is not None else None for key in ("best", "last")}
        return cls(
            **{
                **values,
                **scores,
                "loss_sum": values["loss_sum"].to(device),
                "sessions": values["sessions"] + 1,
            }
        )
