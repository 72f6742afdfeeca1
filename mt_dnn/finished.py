"""A finished run's files, checked: what predictions, exports and runs that begin with its weights read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError, shown
from module.methods import METHODS
from mt_dnn.results import RunResult, Status
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_reference import EPOCHS


def read_finished(path: Path) -> tuple[RunDirectory, Mapping[str, Any], RunResult]:
    """Read a run directory, wherever it lies: the directory, its ``run.json`` and its result.

    Raises:
        SettingError: no run, one that is not done or has failed, a damaged file, files of two runs, or a method that is
            not installed.
    """
    directory = RunDirectory(path)
    description = directory.read_description()
    if description is None:
        raise SettingError(f"{path} is no run directory (no run.json); give a folder like runs/cola/.../seed=1")
    result = directory.read_result(moved=True)
    if result is None or result.status is Status.FAILED:
        state = "is not finished" if result is None else f"has failed ({result.error})"
        raise SettingError(f"{path} {state}; start its command again and wait for result.json")
    if gone := [name for name in result.method.split("+") if name not in METHODS]:
        raise SettingError(f"{path}: its method {shown(gone[0])} is not installed here; install the package it is from")
    for name in ("task", "encoder", "method", "run_id", "seed"):
        if name in description and description[name] != getattr(result, name):
            raise SettingError(
                f"{path}: result.json is of another run than run.json ({name} {getattr(result, name)}, not "
                f"{description[name]}); put the right one back, or delete the folder to run again"
            )
    return directory, description, result


def kept_epochs(directory: RunDirectory) -> list[str]:
    """The epochs whose weights a run kept, of ``best`` and ``last``."""
    from mt_dnn.checkpoint import weights_file  # here: it imports torch

    return [name for name in EPOCHS if weights_file(directory.checkpoints, name).is_file()]


def kept_weights(directory: RunDirectory, epoch: str, save: object, other: str) -> Path:
    """The file with the weights of an epoch, ``best`` or ``last``.

    Args:
        directory: of the run.
        epoch: the epoch.
        save: the run's setting, for the message.
        other: how to ask for the other epoch, up to its name, such as ``--epoch ``.

    Raises:
        SettingError: they were not kept.
    """
    from mt_dnn.checkpoint import weights_file  # here: it imports torch

    kept = kept_epochs(directory)
    if epoch in kept:
        return weights_file(directory.checkpoints, epoch)
    again = f"to get them, delete {directory.result_json} and start the run again with --save"
    if kept:
        raise SettingError(
            f"{directory.path} kept weights of the {kept[0]} epoch only (save: {save}); use {other}{kept[0]}, or, "
            f"{again} both"
        )
    raise SettingError(f"{directory.path} kept no weights (save: {save}); {again} {epoch}")
