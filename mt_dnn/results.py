"""The result of a run: scores by epoch, data set and task, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from data_utils.errors import shown
from data_utils.task_def import Metric


class Status(StrEnum):
    """The outcome of a run."""

    OK = "ok"
    DEGENERATE = "degenerate"  # its scores tell nothing: one class or value predicted, or the reason in ``error``
    DIVERGED = "diverged"  # a loss, gradient, weight or logit was NaN or infinite
    FAILED = "failed"  # an error; the next start tries again
    PRUNED = "pruned"  # a search gave it up after an epoch; outside that search the next start goes on


def is_held_out(dataset: str) -> bool:
    """Whether a data set is the held-out part of a training set."""
    return dataset.endswith("_holdout")


@dataclass(frozen=True, slots=True)
class EpochScore:
    """Dev scores after one epoch, in percent."""

    epoch: int
    """1-based."""
    score: float
    """Mean of the task's primary metric over the dev sets that give the score: ``datasets`` of the result."""
    metrics: dict[str, dict[str, float]]
    """Data set -> metric -> value: the dev sets, those only shown too, and the held-out set where there is one."""
    held_out: float | None = None
    """Primary metric on the held-out part of the training set; None without one."""

    @classmethod
    def of_task(cls, whole: EpochScore, evaluated: Iterable[str], selecting: Iterable[str], metric: str) -> EpochScore:
        """Take the scores of one task out of those of all tasks of an epoch.

        Args:
            whole: The epoch; its own score is not read.
            evaluated: The task's sets.
            selecting: Those of them that the score is made of.
            metric: The task's primary metric.
        """
        metrics = {name: whole.metrics[name] for name in evaluated}
        held_out = next((found[metric] for name, found in metrics.items() if is_held_out(name)), None)
        return cls(whole.epoch, mean_score(metrics, selecting, metric), metrics, held_out)

    @property
    def choice(self) -> float:
        """The score for choosing an epoch: held-out if there is one, else dev."""
        return self.score if self.held_out is None else self.held_out

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EpochScore:
        """Read an epoch of ``result.json``; errors as of :meth:`RunResult.from_json`."""
        held_out = values.get("held_out")
        return cls(
            _number(values["epoch"], int),
            _number(values["score"]),
            {name: {m: _number(v) for m, v in of_set.items()} for name, of_set in values["metrics"].items()},
            None if held_out is None else _number(held_out),
        )


def mean_score(metrics: Mapping[str, Mapping[str, float]], selecting: Iterable[str], metric: str) -> float:
    """The score of a task: the mean of a metric over its dev sets that give it.

    Args:
        metrics: Data set -> metric -> value.
        selecting: The sets.
        metric: The task's primary metric.
    """
    return float(np.mean([metrics[name][metric] for name in selecting]))


MEAN = "mean"
"""Name of the score of a run with several tasks: the mean over them of each one's primary metric."""


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Scores of one of several tasks of a run."""

    status: Status
    """``ok`` or ``degenerate``."""
    error: str | None
    primary_metric: str
    datasets: list[str]
    train_examples: int
    best: EpochScore | None
    """The task's own best epoch, with its scores alone."""
    last: EpochScore | None

    def at(self, epoch: EpochScore) -> EpochScore:
        """The task's scores in those of all tasks of an epoch."""
        assert self.best is not None
        return EpochScore.of_task(epoch, self.best.metrics, self.datasets, self.primary_metric)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TaskScores:
        """Read the scores of a task in ``result.json``; errors as of :meth:`RunResult.from_json`."""
        scores = {key: EpochScore.from_json(values[key]) if values[key] else None for key in ("best", "last")}
        _number(values["train_examples"], int)
        metric = Metric(values["primary_metric"])
        _check_scored(scores.values(), values["datasets"], metric)
        return cls(**{**values, **scores, "status": Status(values["status"]), "primary_metric": str(metric)})


@dataclass(frozen=True, slots=True)
class RunResult:
    """The content of ``result.json``; see the fields of the same names in :class:`mt_dnn.config.RunConfig`."""

    status: Status
    task: str
    encoder: str
    method: str
    seed: int
    run_id: str
    primary_metric: str
    datasets: list[str]
    epochs: int
    steps: int
    """Optimizer steps made."""
    train_examples: int
    """Examples in the training set (or the subset of it that was used)."""
    seconds: float
    """Time spent, over all sessions of the run."""
    best: EpochScore | None = None
    last: EpochScore | None = None
    """None when the run did not get to its last epoch, of all or by its patience."""
    stopped_early: bool = False
    """Whether patience ended it before all epochs were made."""
    recipe: str | None = None
    error: str | None = None
    sessions: int = field(default=1)
    """Processes that it took: 1 plus the number of resumptions."""
    files: dict[str, str] = field(default_factory=dict)
    """Of the run's folder: path in it -> SHA-256. Empty in a failed run and in runs of earlier versions."""
    tasks: dict[str, TaskScores] = field(default_factory=dict)
    """Of a run with several tasks: each one's scores. ``primary_metric`` is then their ``mean``, ``best`` the epoch
    that is best in it, and ``train_examples`` their sum."""

    def by_task(self) -> list[RunResult]:
        """The result of each task, with its own best epoch; of a run with one task this result."""
        if not self.tasks:
            return [self]
        return [self._of_task(task, scores.best) for task, scores in self.tasks.items()]

    def of_kept_weights(self, task: str) -> RunResult:
        """The result of a task, with its scores at the epoch that is best on average, whose weights are kept."""
        if not self.tasks:
            return self
        return self._of_task(task, None if self.best is None else self.tasks[task].at(self.best))

    def _of_task(self, task: str, best: EpochScore | None) -> RunResult:
        scores = self.tasks[task]
        told = self if self.status is not Status.DEGENERATE else scores
        return replace(
            self,
            task=task,
            status=told.status,
            error=told.error,
            primary_metric=scores.primary_metric,
            datasets=scores.datasets,
            train_examples=scores.train_examples,
            best=best,
            last=scores.last,
            tasks={},
        )

    @property
    def done(self) -> bool:
        """Whether nothing is left to compute."""
        return self.status not in (Status.FAILED, Status.PRUNED)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunResult:
        """Read the content of ``result.json``.

        Raises:
            ValueError, TypeError, KeyError: it has not all of it, or something of another type.
        """
        scores = {key: EpochScore.from_json(values[key]) if values[key] else None for key in ("best", "last")}
        for name in ("task", "encoder", "method", "run_id"):
            if not isinstance(values[name], str):
                raise ValueError(f"{name} is {shown(values[name])}")
        for name in ("seed", "epochs", "steps", "train_examples"):
            _number(values[name], int)
        if not isinstance(values.get("stopped_early", False), bool):
            raise ValueError(f"stopped_early is {shown(values['stopped_early'])}")
        tasks = {task: TaskScores.from_json(of_task) for task, of_task in values.get("tasks", {}).items()}
        metric = None if tasks and values["primary_metric"] == MEAN else Metric(values["primary_metric"])
        _check_scored(scores.values(), values["datasets"], metric)
        parsed = {"status": Status(values["status"]), "files": dict(values.get("files", {})), "tasks": tasks}
        return cls(**{**values, **scores, **parsed, "primary_metric": str(metric or MEAN)})


def _check_scored(epochs: Iterable[EpochScore | None], datasets: Any, metric: Metric | None) -> None:
    """Raise ValueError or KeyError where data sets are not named, or an epoch has no score of one."""
    if not isinstance(datasets, list) or not datasets:
        raise ValueError(f"datasets is {shown(datasets)}")
    for epoch in filter(None, epochs):
        for dataset in datasets:
            found = epoch.metrics[dataset]
            if metric is not None:
                found[metric]  # KeyError: a score is missing


def _number(value: Any, kind: type[int] | type[float] = float) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise ValueError(f"{shown(value)} stands where a number should")
    return value
