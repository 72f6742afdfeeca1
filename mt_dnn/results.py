"""The run directory: the files of a run, consistent after a kill at any instant."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.atomic import write_bytes_atomic
from data_utils.errors import SettingError, shown
from data_utils.file_hash import sha256_of
from data_utils.json_file import read_json, write_json
from data_utils.named_arrays import arrays_bytes, read_arrays
from data_utils.task_def import Metric
from mt_dnn.metrics_log import read_records


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


class RunLocked(RuntimeError):
    """Another process is computing this run."""


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


class RunDirectory:
    """Paths and files of one run.

    ``run.json`` is there before the first step, ``metrics.jsonl`` grows, ``predictions.npz`` and then ``result.json``
    come last: a result that can be read is a run that is done.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_json = path / "run.json"
        self.metrics_jsonl = path / "metrics.jsonl"
        self.predictions_npz = path / "predictions.npz"
        self.sensitivity_json = path / "sensitivity.json"
        self.result_json = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tb"
        self.trackers_json = path / "trackers.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's lock in this process; the operating system releases it whenever the process ends.

        Raises:
            RunLocked: another process holds it.
            SettingError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = os.fdopen(os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644))
        except OSError as error:
            raise SettingError(
                f"output_dir: cannot write {self.path} ({error.strerror}); make it writable or choose another"
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunLocked(f"{self.path} is being computed by another process") from None
            yield

    def read_result(self, moved: bool = False) -> RunResult | None:
        """The result, or None when there is none yet.

        Args:
            moved: Whether the folder may be a copy elsewhere, whose path says nothing.

        Raises:
            SettingError: ``result.json`` is damaged, or of another run.
        """
        try:
            result = RunResult.from_json(read_json(self.result_json))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except SettingError as error:
            if isinstance(error.__cause__, OSError):  # no permission, too many open files: the run is none the worse
                raise
            raise SettingError(f"{error}; delete it to run again") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SettingError(f"{self.result_json} is damaged ({_reason(error)}); delete it to run again") from None
        expected = (result.task, result.encoder, result.method, result.run_id, f"seed={result.seed}")
        place = Path(os.path.abspath(self.path)).parts[-len(expected) :]
        if not moved and place != expected:
            raise SettingError(
                f"{self.result_json} is the result of {'/'.join(expected)} and not of its folder; put it back, or "
                "delete it to run again"
            )
        return result

    def read_description(self) -> dict[str, Any] | None:
        """``run.json``, or None when there is none yet.

        Raises:
            SettingError: it is there but damaged.
        """
        try:
            return read_json(self.run_json)
        except FileNotFoundError:
            return None

    def start(self, description: Mapping[str, Any]) -> None:
        """Write ``run.json``: configuration, identity, versions, machine, command."""
        write_json(self.run_json, description)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        with self.metrics_jsonl.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def truncate_metrics(self, length: int) -> None:
        """Cut ``metrics.jsonl`` to the length it had at a checkpoint (0: from the start)."""
        if length == 0:
            self.metrics_jsonl.unlink(missing_ok=True)
            return
        if self.metrics_size() < length:
            raise SettingError(f"{self.metrics_jsonl} is shorter than at its checkpoint; delete {self.path} to restart")
        os.truncate(self.metrics_jsonl, length)

    def metrics_size(self) -> int:
        """Bytes in ``metrics.jsonl``."""
        return self.metrics_jsonl.stat().st_size if self.metrics_jsonl.is_file() else 0

    def write_predictions(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write each set's ``uids``, ``labels`` (N,), ``best_logits``, ``last_logits`` (N, K) as ``<set>.<name>``."""
        write_bytes_atomic(self.predictions_npz, arrays_bytes(arrays))

    def read_predictions(self, result: RunResult) -> dict[str, np.ndarray]:
        """Read the arrays of :meth:`write_predictions`.

        Raises:
            SettingError: the file is damaged or missing, or was not written with this result.
        """
        self.check_file(self.predictions_npz, result)
        return read_arrays(self.predictions_npz, self._again)

    def read_metrics(self, result: RunResult) -> list[dict[str, Any]]:
        """Lines of a finished run's ``metrics.jsonl``; none if it was not kept.

        Raises:
            SettingError: it is damaged, or was not written with this result.
        """
        if self.metrics_jsonl.is_file():
            self.check_file(self.metrics_jsonl, result)
        return read_records(self.metrics_jsonl)

    def hashes(self) -> dict[str, str]:
        """Path in the folder -> SHA-256 of a run's files but the weights, for :attr:`RunResult.files`."""
        files = (self.predictions_npz, self.sensitivity_json, self.metrics_jsonl)
        return {file.name: sha256_of(file) for file in files if file.is_file()}

    def check_file(self, file: Path, result: RunResult) -> None:
        """Refuse a file of the folder whose checksum is not the result's.

        Results of failed runs and of earlier versions name no files: nothing is checked then.

        Raises:
            SettingError: its checksum is another one, or the result knows no such file; the message names a remedy.
        """
        if not result.files:
            return
        expected = result.files.get(file.relative_to(self.path).as_posix())
        try:
            found = sha256_of(file) if file.is_file() else None
        except OSError as error:
            raise SettingError(f"{file} cannot be read: {error.strerror or error}") from None
        if expected is None or found is None:
            raise SettingError(f"{file} {'is missing' if found is None else 'is not of this run'}; {self._again}")
        if found != expected:
            raise SettingError(f"{file} is damaged or of another run (result.json has another checksum); {self._again}")

    @property
    def _again(self) -> str:
        return f"delete {self.path} to run again"

    def write_result(self, result: RunResult) -> None:
        """Write ``result.json``: from now on the run is done (or has failed)."""
        write_json(self.result_json, asdict(result))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{text} is missing" if isinstance(error, KeyError) else text or type(error).__name__
