"""The run directory: the files of a run, consistent after a kill at any instant."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.atomic import write_bytes_atomic
from data_utils.errors import SettingError
from data_utils.file_hash import sha256_of
from data_utils.json_file import read_json, write_json
from data_utils.named_arrays import arrays_bytes, read_arrays
from mt_dnn.metrics_log import read_records
from mt_dnn.results import RunResult


class RunLocked(RuntimeError):
    """Another process is computing this run."""


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
