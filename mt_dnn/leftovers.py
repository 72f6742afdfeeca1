"""Leftovers of killed, failed and pruned sessions in the directory of a run."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from data_utils.errors import SettingError
from mt_dnn.results import RunDirectory, RunLocked, RunResult, Status


def leftovers(directory: RunDirectory, done: bool) -> list[Path]:
    """Find files that were being written at a kill and, once the run is done, its checkpoints."""
    found = [*directory.path.glob(".*.tmp*"), *directory.checkpoints.rglob(".*.tmp*")]
    return found + (list(directory.checkpoints.glob("last-*")) if done else [])


def sweep(directory: RunDirectory, done: bool) -> None:
    """Remove :func:`leftovers`; the lock must be held, so nobody is at work on them."""
    for path in leftovers(directory, done):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sweep_unless_locked(directory: RunDirectory, done: bool) -> None:
    """Remove :func:`leftovers` of a run that is over; leave them where another process is at work."""
    if leftovers(directory, done):
        with suppress(RunLocked, SettingError, OSError), directory.lock():
            sweep(directory, done)


def clear_result(directory: RunDirectory, result: RunResult) -> None:
    """Take away the result of a pruned run, or all of a failed one but the lock, the checkpoints and the metrics."""
    directory.result_json.unlink(missing_ok=True)
    if result.status is Status.PRUNED:
        return
    for file in (directory.predictions_npz, directory.sensitivity_json):
        file.unlink(missing_ok=True)
    shutil.rmtree(directory.tensorboard, ignore_errors=True)
