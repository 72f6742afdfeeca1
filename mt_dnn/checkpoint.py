"""Checkpoints of a run: each loads bit for bit or is refused by name, and nothing in it is executed."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_utils.atomic import sync_folder
from data_utils.errors import SettingError, error_line, in_one_line
from data_utils.file_hash import sha256_of
from data_utils.json_file import read_json, write_json
from mt_dnn.run_reference import EPOCHS

_MODEL = "model.safetensors"
_STATE = "state.pt"
_SUMS = "sha256.json"
_LAST = "last-"
_NO_SPACE = 1 << 16  # bytes left on a disk that has just refused a write


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A point between two steps: weights and everything else that the next step depends on."""

    step: int
    model: dict[str, Tensor]
    state: dict[str, Any]


def save_last(folder: Path, step: int, network: nn.Module, state: Mapping[str, Any]) -> None:
    """Write the resume checkpoint of ``step`` and then drop the one before it.

    The files are written under another name and renamed as the last act, so that a kill, a full disk or a power cut
    leaves the checkpoint before it as the newest.

    Args:
        folder: The run's ``checkpoints`` folder.
        step: Optimizer steps made so far.
        network: Its ``state_dict`` becomes ``model.safetensors``.
        state: Tensors and plain values only, for ``torch.load(weights_only=True)``.

    Raises:
        SettingError: the files could not be written.
    """
    target = folder / f"{_LAST}{step:08d}"
    if target.is_dir():
        return  # the same step of the same run: the same bytes
    scratch = folder / f".{target.name}.tmp"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        _write_weights(network, scratch / _MODEL)
        torch.save(dict(state), scratch / _STATE)
        write_json(scratch / _SUMS, {name: sha256_of(scratch / name) for name in (_MODEL, _STATE)})
        for name in (_MODEL, _STATE):
            _sync(scratch / name)
        scratch.rename(target)
        _sync(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        refusal = _unwritable(target, error)
        shutil.rmtree(scratch, ignore_errors=True)
        raise refusal from None
    for step_before, path in _found(folder):
        if step_before < step:
            shutil.rmtree(path, ignore_errors=True)


def load_last(folder: Path) -> Checkpoint | None:
    """Return the newest resume checkpoint, or None if there is none.

    Raises:
        SettingError: it is damaged, or cannot be read; the message names the file and a remedy.
    """
    found = _found(folder)
    if not found:
        return None
    step, path = found[-1]
    try:
        sums = read_json(path / _SUMS)
        for name in (_MODEL, _STATE):
            if sha256_of(path / name) != sums[name]:
                raise SettingError(f"{path / name} is damaged (its checksum differs)")
        state = torch.load(path / _STATE, map_location="cpu", weights_only=True)
        return Checkpoint(step, load_file(path / _MODEL), state)
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        system = error if isinstance(error, OSError) else error.__cause__
        if isinstance(system, OSError) and not isinstance(system, FileNotFoundError):  # the checkpoint may be whole
            raise SettingError(f"{path} cannot be read: {error_line(system)}") from None
        if isinstance(error, SettingError):
            raise SettingError(f"{error}; delete {path} to start this run again from its beginning") from None
        raise SettingError(f"{path} is damaged ({in_one_line(error)}); delete it to start this run again") from None


def drop_last(folder: Path) -> None:
    """Remove resume checkpoints, those half written included."""
    for path in [*folder.glob(f"{_LAST}*"), *folder.glob(f".{_LAST}*")]:
        shutil.rmtree(path, ignore_errors=True)


def save_weights(folder: Path, name: str, network: nn.Module) -> str:
    """Write the weights alone to ``<folder>/<name>/model.safetensors``, atomically; :func:`sync` flushes it.

    Args:
        folder: The run's ``checkpoints`` folder.
        name: ``best`` or ``last``.
        network: The trained network.

    Returns:
        SHA-256 of the file.

    Raises:
        SettingError: the file could not be written.
    """
    target = weights_file(folder, name)
    scratch = target.with_name(f".{_MODEL}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_weights(network, scratch)
        digest = sha256_of(scratch)
        os.replace(scratch, target)
    except (OSError, RuntimeError, SafetensorError) as error:
        refusal = _unwritable(target, error)
        scratch.unlink(missing_ok=True)
        raise refusal from None
    return digest


def sync(metrics: Path, folder: Path) -> None:
    """Flush a run's metrics and kept weights to disk, before a checkpoint or the result names them.

    A checkpoint must not outlive in a power cut what it names. What a cut takes before that is of steps behind the
    newest checkpoint, which the run makes again, so no epoch waits for the disk.

    Args:
        metrics: The run's ``metrics.jsonl``.
        folder: The run's ``checkpoints`` folder.

    Raises:
        SettingError: a file could not be written.
    """
    for file in (metrics, *(weights_file(folder, name) for name in EPOCHS)):
        if not file.is_file():
            continue
        try:
            _sync(file)
        except OSError as error:
            raise _unwritable(file, error) from None
        sync_folder(file.parent)


def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Read the file of :func:`save_weights`.

    Raises:
        SettingError: the file is missing or damaged.
    """
    path = weights_file(folder, name)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SettingError(f"cannot read the weights {path}: {in_one_line(error)}") from None


def weights_file(folder: Path, name: str) -> Path:
    """The file that :func:`save_weights` writes."""
    return folder / name / _MODEL


def drop_weights(folder: Path, name: str) -> None:
    """Remove the file of :func:`save_weights`, if it exists."""
    shutil.rmtree(folder / name, ignore_errors=True)


def _write_weights(network: nn.Module, path: Path) -> None:
    path.unlink(missing_ok=True)
    path.touch()  # with the mode of any other file: safetensors makes its own readable for its owner alone
    mode = path.stat().st_mode
    save_file({name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}, path)
    path.chmod(mode)


def _found(folder: Path) -> list[tuple[int, Path]]:
    """Resume checkpoints, oldest first."""
    paths = [p for p in folder.glob(f"{_LAST}*") if p.name[len(_LAST) :].isdecimal()]
    return sorted((int(path.name[len(_LAST) :]), path) for path in paths)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, error: Exception) -> SettingError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else in_one_line(error)
    with suppress(OSError):  # torch and safetensors say of a full disk only that a write came short
        if shutil.disk_usage(path.parent.parent).free < _NO_SPACE:
            reason = os.strerror(errno.ENOSPC)
    return SettingError(
        f"cannot write {path} ({reason}); free space or make the folder writable and start the same command again, "
        f"the checkpoint before it is intact"
    )
