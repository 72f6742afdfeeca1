"""metrics.jsonl and TensorBoard of one run, cut back to the checkpoint when the run goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mt_dnn.results import EpochScore, RunDirectory

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Writes the metrics of a run.

    Args:
        directory: The run's directory.
        tensorboard: Whether to write TensorBoard events too.
    """

    def __init__(self, directory: RunDirectory, tensorboard: bool) -> None:
        self._directory = directory
        self._tensorboard = tensorboard
        self._writer: SummaryWriter | None = None
        self._purge_step = 1

    def start(self, metrics_size: int, step: int) -> None:
        """Begin, or go on from a checkpoint.

        Args:
            metrics_size: Length of ``metrics.jsonl`` at the checkpoint, bytes; 0 at the start.
            step: Optimizer steps at the checkpoint, 0 at the start; TensorBoard hides later records of other sessions.
        """
        self._directory.truncate_metrics(metrics_size)
        self._purge_step = step + 1

    def log(self, record: Mapping[str, Any]) -> None:
        """Write the record of a logging step: ``step``, ``epoch`` and named numbers."""
        self._directory.append_metrics(record)
        self._scalars("train/", record, record["step"])

    def evaluated(self, step: int, scores: EpochScore, raw: EpochScore | None) -> None:
        """Write the record of an evaluation.

        Args:
            step: Optimizer steps made.
            scores: Of the weights that the method evaluates.
            raw: Of the weights as they are trained, where those are others.
        """
        record: dict[str, Any] = {"step": step, "epoch": scores.epoch}
        record |= {"score": scores.score, "evaluation": scores.metrics}
        if scores.held_out is not None:
            record["held_out"] = scores.held_out
        if raw is not None:
            record |= {"raw_score": raw.score, "raw_evaluation": raw.metrics}
        self._directory.append_metrics(record)
        for prefix, metrics in (("dev", scores.metrics), ("dev_raw", raw.metrics if raw is not None else {})):
            for dataset, values in metrics.items():
                self._scalars(f"{prefix}/{dataset}/", values, step)

    def flush(self) -> int:
        """Flush both files; returns the length of ``metrics.jsonl`` in bytes."""
        if self._writer is not None:
            self._writer.flush()
        return self._directory.metrics_size()

    def close(self) -> None:
        """Flush and close the files."""
        if self._writer is not None:
            self._writer.close()

    def _scalars(self, prefix: str, values: Mapping[str, Any], step: int) -> None:
        if not self._tensorboard:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # a slow import, not before there is something to write

            self._writer = SummaryWriter(str(self._directory.tensorboard), purge_step=self._purge_step)
        for name, value in values.items():
            if name not in ("step", "epoch") and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(prefix + name, value, step)
