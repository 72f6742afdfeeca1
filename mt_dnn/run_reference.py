"""A trained run in the place of an encoder: ``init_checkpoint`` names its folder. Its name, and what it began with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from data_utils.errors import SettingError
from data_utils.json_file import read_json
from data_utils.names import check_name, slug

BEGUN_FROM = "begun_from"
"""The key in ``run.json`` of what a run began with, where that was a run."""
EPOCHS = ("best", "last")
"""Epochs whose weights a run may have kept."""
_MAX_NAME = 100
_SEED = re.compile("seed=([0-9]+)")
_RUN_ID = re.compile("[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class RunReference:
    """A run, or the runs of all seeds of one setting, whose trained weights another run begins with."""

    folder: Path
    """``.../<run id>/seed=<seed>``; or ``.../<run id>``, of which a run takes that of its own seed."""
    epoch: str
    """``best`` or ``last``; empty where none is named: the best one, or the last where that alone was kept."""
    of_seeds: bool
    """Whether it is the folder of the seeds."""

    @property
    def name(self) -> str:
        """Name of the trained encoder in paths and tables, wherever its folder lies.

        ``<encoder>--<task>-<method>-<run id>``, and ``-s<seed>`` of one run, ``-last`` of its last epoch.

        Raises:
            SettingError: neither its run.json nor its path says what run it is.
        """
        found = self._read() or self._of_path()
        seed = "" if self.of_seeds else f"-s{found['seed']}"
        end = f"-{found['run_id']}{seed}{'-last' if self.epoch == 'last' else ''}"  # tells apart what is cut off
        text = f"{found['encoder']}--{found['task']}-{found['method']}"[: _MAX_NAME - len(end)] + end
        return check_name("encoder", text.replace("..", "."))

    def of_seed(self, seed: int | None) -> Path:
        """Folder of the run that a run with a seed begins with.

        Raises:
            SettingError: it does not exist; or there is one for each seed, and no seed is given.
        """
        if self.of_seeds and seed is None:
            raise SettingError(f"init_checkpoint: {self.folder} holds a run for each seed; give one, such as seed=1")
        folder = self.folder / f"seed={seed}" if self.of_seeds else self.folder
        if not (folder / "run.json").is_file():
            raise SettingError(
                f"init_checkpoint: the run {folder} does not exist; train it first, or give another one (.../seed=1) "
                "or an encoder"
            )
        return folder

    def any_run(self) -> Path:
        """Folder of one of the runs, which all began with one encoder.

        Raises:
            SettingError: there is none.
        """
        seeds = sorted(self.folder.glob("seed=*/run.json")) if self.of_seeds else []
        return seeds[0].parent if seeds else self.of_seed(0)

    def _read(self) -> Mapping[str, Any] | None:
        """``run.json``, where there is one in the form of this version."""
        try:
            found = read_json(self.any_run() / "run.json")
        except (FileNotFoundError, SettingError):
            return None
        keys = ("task", "encoder", "method", "run_id", "seed")
        return found if all(key in found for key in keys) else None

    def _of_path(self) -> Mapping[str, Any]:
        """Read the same out of the path of a run that is yet to be made."""
        parts = self.folder.parts if self.of_seeds else self.folder.parent.parts
        if len(parts) < 4:
            raise SettingError(f"init_checkpoint: {self.folder} does not say what run it is; give its whole path")
        names = dict(zip(("task", "encoder", "method", "run_id"), parts[-4:], strict=True))
        return {**names, "seed": self.folder.name.removeprefix("seed=")}


def find_reference(init_checkpoint: str) -> RunReference | None:
    """Read an ``init_checkpoint`` as a run: its folder, and ``:best`` or ``:last`` after it, if one is named.

    Returns:
        None where it is an encoder.
    """
    path, colon, epoch = init_checkpoint.rpartition(":")
    path, epoch = (path, epoch) if colon and epoch in EPOCHS else (init_checkpoint, "")
    folder = Path(path).expanduser()
    if (folder / "run.json").is_file() or (_SEED.fullmatch(folder.name) and _is_run_id(folder.parent)):
        return RunReference(folder, epoch, of_seeds=False)
    if folder.is_dir() and (folder / "config.json").is_file():
        return None
    if (_is_run_id(folder) and len(folder.parts) > 3) or any(folder.glob("seed=*/run.json")):
        return RunReference(folder, epoch, of_seeds=True)
    return None


def _is_run_id(path: PurePath) -> bool:
    return bool(_RUN_ID.fullmatch(path.name))


def encoder_name(init_checkpoint: str) -> str:
    """Name of an encoder, or of the trained one of a run, as it stands in paths and tables, e.g. ``org--model``.

    Raises:
        SettingError: nothing of it can stand in a path.
    """
    reference = find_reference(init_checkpoint)
    return slug(init_checkpoint) if reference is None else reference.name


def path_of(init_checkpoint: str) -> Path:
    """The folder that an ``init_checkpoint`` names, if it names one at all."""
    reference = find_reference(init_checkpoint)
    return Path(init_checkpoint) if reference is None else reference.folder


def pretrained_of(init_checkpoint: str) -> str:
    """The pretrained encoder that is the first of a chain of runs; of an encoder itself.

    Raises:
        SettingError: the run does not exist, or its run.json is damaged or of another version.
    """
    reference = find_reference(init_checkpoint)
    if reference is None:
        return init_checkpoint
    folder = reference.any_run()
    return pretrained_in(read_json(folder / "run.json"), folder)


def pretrained_in(description: Mapping[str, Any], folder: Path) -> str:
    """The pretrained encoder of a run, by its ``run.json`` alone: the run that it began with may be gone.

    Raises:
        SettingError: it does not say.
    """
    begun = description.get(BEGUN_FROM)
    try:
        found = description["config"]["init_checkpoint"] if begun is None else begun["pretrained"]
    except (KeyError, TypeError):
        found = None
    if not isinstance(found, str):
        raise SettingError(f"{folder / 'run.json'} is of another version: it does not name its encoder")
    return found
