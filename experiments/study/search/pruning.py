"""Median pruning: a trial that does worse than half of the others did after as many epochs is given up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.study.launch.worker import RunFunction
from mt_dnn.config import RunConfig
from mt_dnn.metrics_log import read_records
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir

MIN_OTHERS = 4
"""Trials that must have come as far before one is measured by their median."""


@dataclass(frozen=True, slots=True)
class PrunedRun:
    """A run function for the pool, with median pruning.

    It reads the other trials' ``metrics.jsonl``, so it works wherever their folders can be seen.
    """

    run: RunFunction
    """The run function it stands for; must take ``prune``."""
    first_epoch: int
    """Epochs that every trial makes, >= 1."""
    trials: Mapping[tuple[str, str, str], Sequence[str]]
    """(encoder, method, task) -> run ids of its trials."""

    def __call__(self, config: RunConfig, on_progress: Callable[[Any], None] | None = None) -> Any:
        """Compute one run."""
        own = run_dir(config)
        ids = self.trials[config.encoder, config.method, config.task]
        others = [own.parent.parent / run_id / own.name for run_id in ids if run_id != own.parent.name]
        return self.run(config, on_progress=on_progress, prune=partial(self._is_hopeless, others))

    def _is_hopeless(self, others: Sequence[Path], epoch: int, best: float) -> bool:
        return epoch >= self.first_epoch and below_median(best, epoch, map(read_choices, others))


def below_median(best: float, epoch: int, others: Iterable[Sequence[float]]) -> bool:
    """Whether a score is below the median of the others' best scores after as many epochs.

    Args:
        best: Best score so far; NaN is below everything.
        epoch: Epochs made.
        others: Each other trial's scores by epoch; those with fewer epochs do not count, and with fewer than
            ``MIN_OTHERS`` left nothing is below.
    """
    reached = [_best(scores[:epoch]) for scores in others if len(scores) >= epoch]
    return len(reached) >= MIN_OTHERS and _rank(best) < statistics.median(reached)


def read_choices(folder: Path) -> list[float]:
    """The score by which epochs are chosen, by epoch, from a run's ``metrics.jsonl``; empty when there is none.

    A run that stopped early has come as far as any: it has NaN for the epochs that it left out.
    """
    evaluations = [record for record in read_records(folder / "metrics.jsonl") if "evaluation" in record]
    scores = [float(record.get("held_out", record["score"])) for record in evaluations]
    result = RunDirectory(folder).read_result()
    left_out = result.epochs - len(scores) if result is not None and result.stopped_early else 0
    return scores + [math.nan] * left_out


def _best(scores: Sequence[float]) -> float:
    return max(map(_rank, scores))


def _rank(score: float) -> float:
    return -math.inf if math.isnan(score) else score
