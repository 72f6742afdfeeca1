"""The identity of a run by content: its data, its task's definition, its encoder. A result is theirs alone."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError, shown
from data_utils.file_hash import remembered_sha256
from data_utils.task_def import split_dataset_name, to_settings
from mt_dnn.config import RunConfig
from mt_dnn.data import dev_sets, find_task_def, tsv_of
from mt_dnn.encoder.source import content_files, hub_commit, tokenizer_folder
from mt_dnn.results import RunResult, Status
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir
from mt_dnn.starting_point import trained_start

log = logging.getLogger(__name__)

KEY = "identity"
"""The key of an identity in ``run.json``."""
COMMIT = "commit"
"""Of an encoder from the Hub, in the place of file names."""
_OF_SEED = "seed="
"""Weights of a run that was begun with, by their path in the folder of its seeds, ``seed=1/checkpoints/...``."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Contents that a run's numbers follow from, beside its settings."""

    data: Mapping[str, str]
    """File name of the training set and of each dev set -> SHA-256."""
    task_def: Mapping[str, Any]
    """The task's whole definition, as in a task definition file; of several tasks, that of each by its name."""
    encoder: Mapping[str, str]
    """Name of each of its files -> SHA-256; of one from the Hub, ``commit`` -> its revision there."""

    @classmethod
    def of_description(cls, description: Mapping[str, Any]) -> Identity | None:
        """Read the identity in a ``run.json``; None if an earlier version wrote none.

        Raises:
            SettingError: it is there, but not in this form.
        """
        values = description.get(KEY)
        if values is None:
            return None
        try:
            parts = {name: dict(values[name]) for name in ("data", "task_def", "encoder")}
        except (KeyError, TypeError, ValueError):
            raise SettingError(f"{KEY} is {shown(values)}, which is not in the form of this version") from None
        return cls(**parts)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``run.json``."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """Hash of the identity, 12 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def of_task(self, task: str) -> Identity:
        """The identity of one task of a run with several, as of a run with it alone."""
        data = {name: digest for name, digest in self.data.items() if split_dataset_name(name) == task}
        return Identity(data, self.task_def[task], self.encoder)

    def difference(self, other: Identity) -> str:
        """Return the first difference of two runs on one task and encoder, such as ``cola_train.tsv``; else "".

        Data sets of only one of them do not count.
        """
        return self.task_difference(other) or self.encoder_difference(other)

    def task_difference(self, other: Identity) -> str:
        """Return the first difference in task definition and data of two runs on one task, or an empty string."""
        if found := _definition_difference(self.task_def, other.task_def):
            return f"the task definition ({found})"
        return next((name for name in self.data if other.data.get(name, self.data[name]) != self.data[name]), "")

    def encoder_difference(self, other: Identity) -> str:
        """Return the first difference of two encoders of one name, or an empty string.

        Runs of two seeds may each begin with the run of their own seed: its weights, of whichever epoch, are compared
        with those of the same seed alone.
        """
        one, two = _by_seed(self.encoder), _by_seed(other.encoder)
        names = [
            name
            for name in {**one, **two}
            if one.get(name) != two.get(name) and (not name.startswith(_OF_SEED) or (name in one and name in two))
        ]
        if not names:
            return ""
        if COMMIT in names:
            commits = (found.get(COMMIT, "a local folder") for found in (one, two))
            return f"the encoder (on the Hub: commit {' against '.join(commits)})"
        weights = next((name for name in self.encoder if name.startswith(f"{names[0]}/")), names[0])
        return f"the encoder's {weights}"


def _definition_difference(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """Return the first key of two definitions that differs, with both values; in runs with several tasks its task."""
    for key in dict.fromkeys((*one, *two)):
        ours, theirs = one.get(key), two.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            if found := _definition_difference(ours, theirs):
                return f"{key}, {found}"
        elif ours != theirs:
            return f"{key}: {shown(ours)} against {shown(theirs)}"
    return ""


def _by_seed(encoder: Mapping[str, str]) -> dict[str, str]:
    """An encoder's content with the weights of a run under its ``seed=1`` alone."""
    return {name.partition("/")[0] if name.startswith(_OF_SEED) else name: digest for name, digest in encoder.items()}


def identity_of(config: RunConfig) -> Identity:
    """Return the identity of a run by its present files. Nothing is tokenised; hashed files are not read again.

    Raises:
        SettingError: unknown task or dev set, or a missing data file, task definition or encoder.
        OSError: a file cannot be read.
    """
    task_defs: dict[str, dict[str, Any]] = {}
    files: list[Path] = []
    for each in config.by_task():
        task_def = find_task_def(each)
        task_defs[task_def.name] = to_settings(task_def)
        files += [tsv_of(each, name) for name in (task_def.dataset_name("train"), *dev_sets(each, task_def))]
    return Identity(
        data={file.name: remembered_sha256(file) for file in files},
        task_def=task_defs if len(task_defs) > 1 else next(iter(task_defs.values())),
        encoder=_content_of(config),
    )


def encoder_content(folder: Path) -> dict[str, str]:
    """Return the content of an encoder, as in :attr:`Identity.encoder`."""
    commit = hub_commit(folder)
    return {COMMIT: commit} if commit else {file.name: remembered_sha256(file) for file in content_files(folder)}


def read_identity(directory: RunDirectory) -> Identity | None:
    """Return the recorded identity of a run; None without a ``run.json``, or with one of an earlier version.

    Raises:
        SettingError: ``run.json`` is damaged.
    """
    try:
        return Identity.of_description(directory.read_description() or {})
    except SettingError as error:
        raise SettingError(f"{error}; delete {directory.path} to run again") from None


def _content_of(config: RunConfig) -> dict[str, str]:
    """The content of what a run begins with; of a run its weights, and its encoder's configuration and tokenizer.

    Raises:
        SettingError: it is not found, or those files are not what the run was trained with.
    """
    start = trained_start(config.init_checkpoint, config.seed)
    # Fetches no weights to know a commit.
    folder = tokenizer_folder(config.init_checkpoint if start is None else start.pretrained)
    if start is None:
        return encoder_content(folder)
    check_encoder(start.directory.path, Identity.of_description(start.description), folder)
    return _without_weights(encoder_content(folder)) | start.content


def check_encoder(run: Path, recorded: Identity | None, folder: Path) -> None:
    """Refuse an encoder whose configuration or tokenizer is not that of a run; its weights are not looked at.

    Another revision on the Hub may have the same files, so it is only told.

    Args:
        run: the run's folder.
        recorded: its identity; None in a run of an earlier version, which says nothing.
        folder: of the encoder.

    Raises:
        SettingError: it is another one.
    """
    if recorded is None:
        return
    contents = (recorded.encoder, encoder_content(folder))
    own, present = (replace(recorded, encoder=_without_weights(content)) for content in contents)
    difference = own.encoder_difference(present)
    if not difference:
        return
    if any(COMMIT in one for one in contents):
        log.warning("%s is not what %s was trained with", difference, run)
        return
    raise SettingError(f"{difference} in {folder} is not what {run} was trained with; restore it")


def _without_weights(content: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in content.items() if "safetensors" not in name}


def check_same(directory: RunDirectory, present: Identity) -> None:
    """Refuse a run directory of another identity.

    Raises:
        SettingError: it is; names the difference and a remedy.
    """
    recorded = read_identity(directory)
    remedy = "delete that folder to run again, or choose another --output_dir"
    if recorded is None:
        raise SettingError(
            f"{directory.path} does not say what data and encoder it is of (an earlier version wrote it), so it "
            f"cannot be taken for this run; {remedy}"
        )
    if difference := recorded.difference(present):
        raise SettingError(f"{difference} is not what {directory.path} was run with; restore it, or {remedy}")


def finished_result(config: RunConfig, pruned: bool = False) -> RunResult | None:
    """Return the result of a run with nothing left to compute, or None.

    Args:
        config: The run.
        pruned: Whether a run that was pruned is over too.

    Raises:
        SettingError: the run's data, task definition or encoder have changed, or a file of it is damaged.
    """
    directory = RunDirectory(run_dir(config))
    result = directory.read_result()
    if result is None or not (result.done or (pruned and result.status is Status.PRUNED)):
        return None
    check_same(directory, identity_of(config))
    return result
