"""Leftovers of killed, failed and pruned sessions in the directory of a run."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from data_utils.errors import SettingError
from mt_dnn.results import Status
from mt_dnn.run_directory import RunDirectory, RunLocked
from mt_dnn.scores_elsewhere import FOLDER


def leftovers(directory: RunDirectory, done: bool) -> list[Path]:
    """Find files that were being written at a kill and, once the run is done, its checkpoints."""
    evaluations = directory.path / FOLDER
    found = [path for place in (directory.path, evaluations) for path in place.glob(".*.tmp*")]
    found += directory.checkpoints.rglob(".*.tmp*")
    return found + (list(directory.checkpoints.glob("last-*")) if done else [])


def sweep(directory: RunDirectory, done: bool) -> None:
    """Remove :func:`leftovers`; the caller holds the lock."""
    for path in leftovers(directory, done):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sweep_unless_locked(directory: RunDirectory, done: bool) -> None:
    """Remove :func:`leftovers` of a run that is over, unless another process holds its lock."""
    if leftovers(directory, done):
        with suppress(RunLocked, SettingError, OSError), directory.lock():
            sweep(directory, done)


def clear(directory: RunDirectory) -> None:
    """Prepare a directory for a run to go on: remove leftovers, and the earlier result with its files.

    The checkpoints stay, the metrics up to them, and all files of a run that was pruned.
    """
    sweep(directory, done=False)
    result = directory.read_result()
    if result is None:
        return
    directory.result_json.unlink()
    if result.status is not Status.PRUNED:
        directory.predictions_npz.unlink(missing_ok=True)
        directory.sensitivity_json.unlink(missing_ok=True)
        shutil.rmtree(directory.tensorboard, ignore_errors=True)
