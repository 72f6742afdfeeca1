"""The identity of a run by content: its data, its task's definition, its encoder. A result is theirs alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError, shown
from data_utils.file_hash import remembered_sha256
from data_utils.task_def import split_dataset_name, to_settings
from mt_dnn.config import RunConfig, run_dir
from mt_dnn.data import dev_sets, find_task_def, tsv_of
from mt_dnn.results import RunDirectory, RunResult, Status
from mt_dnn.starting_point import COMMIT, content_of

KEY = "identity"
"""The key of an identity in ``run.json``."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Contents that a run's numbers follow from, beside its settings."""

    data: Mapping[str, str]
    """File name of the training set and of each dev set -> SHA-256."""
    task_def: Mapping[str, Any]
    """The task's whole definition, as in a task definition file; of several tasks, that of each by its name."""
    encoder: Mapping[str, str]
    """As :func:`mt_dnn.starting_point.content_of` has it."""

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
        for key in dict.fromkeys((*self.task_def, *other.task_def)):
            one, two = self.task_def.get(key), other.task_def.get(key)
            if one != two:
                return f"the task definition ({key}: {shown(one)} against {shown(two)})"
        return next((name for name in self.data if other.data.get(name, self.data[name]) != self.data[name]), "")

    def encoder_difference(self, other: Identity) -> str:
        """Return the first difference of two encoders of one name, or an empty string."""
        one, two = self.encoder, other.encoder
        names = [name for name in {**one, **two} if one.get(name) != two.get(name)]
        if not names:
            return ""
        if COMMIT in names:
            commits = (found.get(COMMIT, "a local folder") for found in (one, two))
            return f"the encoder (on the Hub: commit {' against '.join(commits)})"
        return f"the encoder's {names[0]}"


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
        encoder=content_of(config.init_checkpoint),
    )


def read_identity(directory: RunDirectory) -> Identity | None:
    """Return the recorded identity of a run; None without a ``run.json``, or with one of an earlier version.

    Raises:
        SettingError: ``run.json`` is damaged.
    """
    try:
        return Identity.of_description(directory.read_description() or {})
    except SettingError as error:
        raise SettingError(f"{error}; delete {directory.path} to run again") from None


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
