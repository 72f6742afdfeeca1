"""The run directory: what a run leaves behind, written so that a kill at any instant leaves nothing half true."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.atomic import write_bytes_atomic, write_text_atomic
from data_utils.errors import SettingError


class Status(StrEnum):
    """How a run ended."""

    OK = "ok"
    DEGENERATE = "degenerate"  # its scores tell nothing: one class or value predicted, or what ``error`` says
    DIVERGED = "diverged"  # a loss, gradient, weight or logit was NaN or infinite
    FAILED = "failed"  # an error; the next start tries again
    PRUNED = "pruned"  # a search gave it up after an epoch; outside that search the next start goes on


class RunLocked(RuntimeError):
    """Another process is computing this run."""


@dataclass(frozen=True, slots=True)
class EpochScore:
    """Dev scores after one epoch, in percent."""

    epoch: int
    """1-based."""
    score: float
    """Mean over the dev sets of the task's primary metric."""
    metrics: dict[str, dict[str, float]]
    """Data set -> metric -> value: the dev sets, and the held-out set where there is one."""
    held_out: float | None = None
    """Primary metric on the held-out part of the training set; None without one."""

    @property
    def choice(self) -> float:
        """The score that epochs are chosen by: held-out where there is one, else dev."""
        return self.score if self.held_out is None else self.held_out


@dataclass(frozen=True, slots=True)
class RunResult:
    """What ``result.json`` holds; see the fields of the same names in :class:`mt_dnn.config.RunConfig`."""

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
    """None when the run did not get to its last epoch."""
    recipe: str | None = None
    error: str | None = None
    sessions: int = field(default=1)
    """Processes that it took: 1 plus the number of resumptions."""

    @property
    def done(self) -> bool:
        """Whether there is nothing left to compute."""
        return self.status not in (Status.FAILED, Status.PRUNED)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunResult:
        """Read what :meth:`RunDirectory.write_result` wrote."""
        scores = {key: EpochScore(**values[key]) if values[key] else None for key in ("best", "last")}
        return cls(**{**values, **scores, "status": Status(values["status"])})


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

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the operating system lets go when the process ends, however it ends.

        Raises:
            RunLocked: another process holds it.
            SettingError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SettingError(
                f"output_dir: cannot write {self.path} ({error.strerror}); make it writable or choose another"
            ) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise RunLocked(f"{self.path} is being computed by another process") from None
        try:
            yield
        finally:
            os.close(handle)

    def read_result(self) -> RunResult | None:
        """The result, or None when there is none yet.

        Raises:
            SettingError: ``result.json`` is there but damaged.
        """
        try:
            values = json.loads(self.result_json.read_text(encoding="utf-8"))
            return RunResult.from_json(values)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise SettingError(f"{self.result_json} is damaged ({error}); delete it to run again") from None

    def start(self, description: Mapping[str, Any]) -> None:
        """Write ``run.json``, or check that the one of an earlier session is of the same run.

        Args:
            description: Configuration, identity, data fingerprint, versions, machine, command.

        Raises:
            SettingError: the earlier session had other data or another encoder behind the same names.
        """
        if self.run_json.is_file() and self.checkpoints.is_dir():
            try:
                earlier = json.loads(self.run_json.read_text(encoding="utf-8"))
            except ValueError:
                earlier = {}  # rewritten below; the checkpoint has its own checksums
            for key in ("data_fingerprint", "encoder_fingerprint"):
                if key in earlier and earlier[key] != description[key]:
                    raise SettingError(
                        f"{self.path} was started with other contents ({key} differs); delete the folder to start over"
                    )
        write_text_atomic(self.run_json, json.dumps(description, indent=2) + "\n")

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
        """Write ``predictions.npz``.

        Args:
            arrays: ``<dataset>.uids`` (N,), ``<dataset>.labels`` (N,), ``<dataset>.best_logits`` (N, K),
                ``<dataset>.last_logits`` (N, K).
        """
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no ** mapping
        write_bytes_atomic(self.predictions_npz, buffer.getvalue())

    def write_result(self, result: RunResult) -> None:
        """Write ``result.json``: from now on the run is done (or has failed)."""
        write_text_atomic(self.result_json, json.dumps(asdict(result), indent=2) + "\n")

    def reopen(self) -> None:
        """Take the result of a pruned run away, so that the run can go on."""
        self.result_json.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what an earlier, failed attempt left, all but the lock, the checkpoints and the metrics up to them."""
        for file in (self.predictions_npz, self.sensitivity_json, self.result_json):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.tensorboard, ignore_errors=True)
