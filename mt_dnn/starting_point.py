"""The starting point of a run: a pretrained encoder, or the trained weights of another run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_utils.errors import SettingError
from data_utils.file_hash import remembered_sha256
from mt_dnn.config import RunConfig
from mt_dnn.encoder.source import EncoderSource, resolve_encoder
from mt_dnn.finished import kept_epochs, kept_weights, read_finished
from mt_dnn.results import Status
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_reference import EPOCHS, find_reference, pretrained_in


@dataclass(frozen=True, slots=True)
class TrainedStart:
    """The weights that a finished run kept of one epoch."""

    directory: RunDirectory
    epoch: str
    """``best`` or ``last``."""
    description: Mapping[str, Any]
    """The run's ``run.json``."""
    pretrained: str
    """``init_checkpoint`` of the encoder that it was made from, through any number of runs."""
    sha256: str
    """Of the file of the weights, as the run recorded it."""

    @property
    def content(self) -> dict[str, str]:
        """The weights by content, for the identity of runs that begin with them; the name says of which seed."""
        seed, epoch = self.description["seed"], self.epoch
        return {f"seed={seed}/checkpoints/{epoch}/model.safetensors": self.sha256}

    def describe(self, name: str) -> dict[str, Any]:
        """Plain values, for ``run.json``."""
        return {"run": name, "epoch": self.epoch, "pretrained": self.pretrained, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class RunSource(EncoderSource):
    """An encoder whose weights are a run's: name, configuration and tokenizer are those of the pretrained one."""

    start: TrainedStart


def resolve_start(config: RunConfig) -> EncoderSource:
    """Find the files of what a run begins with.

    Raises:
        SettingError: as ``resolve_encoder``, or a run whose weights cannot be taken: see :func:`trained_start`.
    """
    start = trained_start(config.init_checkpoint, config.seed)
    if start is None:
        return resolve_encoder(config.init_checkpoint)
    source = resolve_encoder(start.pretrained)
    return RunSource(source.name, source.folder, start)


def trained_start(init_checkpoint: str, seed: int) -> TrainedStart | None:
    """Read the run that ``init_checkpoint`` names; None where it names an encoder.

    Args:
        init_checkpoint: the setting.
        seed: of the run that begins with it, which chooses among a folder of runs.

    Raises:
        SettingError: the run is not there, not finished, has failed, was pruned or diverged, kept no weights of the
            epoch, or a file of it is damaged or of another version.
    """
    reference = find_reference(init_checkpoint)
    if reference is None:
        return None
    path = reference.of_seed(seed)
    try:
        directory, description, result = read_finished(path)
        if result.status in (Status.DIVERGED, Status.PRUNED):
            reason = result.error or "see its result.json"
            raise SettingError(f"{path} is {result.status} ({reason}); begin with a run that was trained to its end")
        try:
            save = description["config"]["save"]
            description["config"]["method_settings"].get("lora")
        except (KeyError, TypeError, AttributeError):
            raise SettingError(f"{directory.run_json} cannot be read by this version: it lacks settings") from None
        epoch = reference.epoch or next(iter(kept_epochs(directory)), EPOCHS[0])
        file = kept_weights(directory, epoch, save, f"{reference.folder}:")
        digest = remembered_sha256(file)
        if result.files.get(file.relative_to(path).as_posix()) != digest:
            directory.check_file(file, result)
        return TrainedStart(directory, epoch, description, pretrained_in(description, path), digest)
    except SettingError as error:
        raise SettingError(f"init_checkpoint: {error}") from None
