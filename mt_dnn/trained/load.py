"""A trained network with its tokenizer and task, from a run directory or from an exported folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from data_utils.errors import SettingError, in_one_line, shown
from data_utils.file_hash import sha256_of
from data_utils.json_file import read_json, write_json
from data_utils.task_def import TaskDef, from_settings, in_this_project, load_task_defs, to_settings
from data_utils.tokenizer import MAX_MAX_SEQ_LEN, TokenizerHandle, load_tokenizer
from mt_dnn.assembly import assemble, pick_device
from mt_dnn.checkpoint import load_weights
from mt_dnn.config import RunConfig
from mt_dnn.config_parser import config_from_mapping
from mt_dnn.encoder.model import load_encoder
from mt_dnn.encoder.source import EncoderSource, content_files, resolve_encoder
from mt_dnn.finished import kept_weights, read_finished
from mt_dnn.identity import Identity, check_encoder
from mt_dnn.network import Network
from mt_dnn.precision import Precision, resolve_precision
from mt_dnn.results import EpochScore, RunResult
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_reference import pretrained_in
from mt_dnn.trained.head_layout import find_layout

TASK_DEF = "task_def.yml"
"""Task definition in an exported folder; a folder that holds it is one."""
SUMS = "sha256.json"
"""In an exported folder: name of each file that a prediction depends on -> SHA-256."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A network in evaluation mode, with its tokenizer and task."""

    network: Network
    task_def: TaskDef
    tokenizer: TokenizerHandle
    max_seq_len: int
    device: torch.device
    precision: Precision


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that is done, read from its directory for one of its tasks."""

    directory: RunDirectory
    config: RunConfig
    result: RunResult
    """Of the task, at the epochs whose weights may be kept."""
    description: Mapping[str, Any]
    """``run.json``."""

    identity: Identity | None
    """Its data, task definition and encoder, by content; None in a run of an earlier version."""
    task_def: TaskDef
    """The definition that it was trained with; of a run of an earlier version the one that its file has now."""
    all_task_defs: tuple[TaskDef, ...]
    """Those of all its tasks, in the order of the run."""

    @property
    def pretrained(self) -> str:
        """``init_checkpoint`` of the encoder that it was made from, through any number of runs."""
        return pretrained_in(self.description, self.directory.path)

    def score(self, epoch: str) -> EpochScore:
        """Scores of an epoch whose weights were kept, ``best`` or ``last``."""
        found = self.result.best if epoch == "best" else self.result.last
        assert found is not None
        return found


def read_run(path: Path, task_def: Path | None = None, task: str | None = None) -> FinishedRun:
    """Read a run directory.

    Args:
        path: the folder ``seed=<seed>`` of a run.
        task_def: task definition file, where the run does not know its own or its file was changed since.
        task: one of the run's tasks; a run with one needs none.

    Raises:
        SettingError: no run, one that is not done or has failed, no task of it, a damaged file, files of two runs, a
            task definition that is not the run's, or a ``run.json`` of another version of this code.
    """
    directory, description, result = read_finished(path)
    try:
        identity = Identity.of_description(description)
        values = dict(description["config"])
        settings = values.pop("method_settings")
        values["task_def"] = str(in_this_project(Path(values["task_def"])))  # its clone may be elsewhere
        config = config_from_mapping({**values, **settings})
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{directory.run_json} cannot be read by this version: {error}") from None
    if task_def is not None:
        config = replace(config, task_def=task_def)
    chosen = _choose_task(path, config, task)
    several = identity is not None and len(config.tasks) > 1
    definitions = [
        _task_def(path, each, identity.of_task(each.task) if identity and several else identity, task_def is not None)
        for each in config.by_task()
    ]
    (definition,) = (one for one in definitions if one.name == chosen)
    result = result.of_kept_weights(chosen)
    return FinishedRun(directory, config, result, description, identity, definition, tuple(definitions))


def _choose_task(path: Path, config: RunConfig, task: str | None) -> str:
    """The task of a run whose head is wanted."""
    if task is None and len(config.tasks) == 1:
        return config.task
    if task not in config.tasks:
        told = f"has no task {shown(task)}" if task is not None else "has several tasks"
        raise SettingError(f"--task: {path} {told}; give one of {', '.join(config.tasks)}")
    return task


def _task_def(path: Path, config: RunConfig, identity: Identity | None, given: bool) -> TaskDef:
    """Find the definition that a task was trained with; ``given`` says that the user chose ``config.task_def``."""
    if not config.task_def.is_file() and (given or identity is None):
        raise SettingError(
            f"task_def: {config.task_def}, which the run was trained with, does not exist; give --task_def"
        )
    found = load_task_defs(config.task_def) if config.task_def.is_file() else {}
    if config.task not in found and (given or identity is None):
        raise SettingError(f"task_def: {config.task_def} does not define {config.task}; it defines {', '.join(found)}")
    if identity is None:
        return found[config.task]
    present = to_settings(found[config.task]) if config.task in found else identity.task_def
    if difference := identity.task_difference(replace(identity, task_def=present)):
        raise SettingError(
            f"task_def: {config.task_def} is not what {path} was trained with: {difference}; restore it, or give "
            "--task_def with a file that holds the run's (task_def in its run.json)"
        )
    return from_settings(config.task, identity.task_def, where=str(path / "run.json"))


def load_run(run: FinishedRun, epoch: str, device: str = "auto", precision: str | None = None) -> TrainedModel:
    """Build a run's network with its trained weights, and the head of the task that it was read for.

    Args:
        run: from ``read_run``.
        epoch: ``best`` or ``last``.
        device: as ``RunConfig.device``.
        precision: as ``RunConfig.precision``; None takes the run's.

    Raises:
        SettingError: the run kept no weights of this epoch, or its encoder is not found.
    """
    run.directory.check_file(kept_weights(run.directory, epoch, run.config.save, "--epoch "), run.result)
    config = replace(run.config, compile=False, gradient_checkpointing=False, device=device)
    where = pick_device(device)
    used = resolve_precision(precision or config.precision, where)
    source, task_def = resolve_encoder(run.pretrained), run.task_def
    check_encoder(run.directory.path, run.identity, source.folder)
    network = assemble(config, run.all_task_defs, source, where, used, _total_steps(run)).network
    try:
        network.load_state_dict(load_weights(run.directory.checkpoints, epoch))
    except RuntimeError as error:
        raise SettingError(
            f"{run.directory.path}: its weights do not fit {run.pretrained}: {in_one_line(error)}"
        ) from None
    network.keep_head(task_def.name)
    return TrainedModel(network.eval(), task_def, load_tokenizer(source.folder), config.max_seq_len, where, used)


def _total_steps(run: FinishedRun) -> int:
    """Steps of all epochs of a run, which methods may check their settings against, wherever it stopped."""
    last = run.result.last
    return max(1, run.result.steps if last is None else math.ceil(run.result.steps * run.result.epochs / last.epoch))


def load_exported(folder: Path, device: str = "auto", precision: str | None = None) -> TrainedModel:
    """Build the network of a folder that ``mt_dnn.trained.export`` wrote.

    Args:
        folder: the folder.
        device: as ``RunConfig.device``.
        precision: as ``RunConfig.precision``; None is fp32.

    Raises:
        SettingError: a file is missing or damaged.
    """
    _check_sums(folder)
    found = load_task_defs(folder / TASK_DEF)
    if len(found) != 1:
        raise SettingError(f"{folder / TASK_DEF} defines {len(found)} tasks, an exported folder's one; export it again")
    (task_def,) = found.values()
    encoder = load_encoder(EncoderSource("exported", folder), hidden_dropout=0.0, attention_dropout=0.0)
    config: Any = encoder.model.config
    layout = find_layout(config.model_type, "tanh")
    where = pick_device(device)
    used = resolve_precision(precision or "fp32", where)
    network = Network(
        encoder,
        [task_def],
        head_dropout=[0.0],
        pooler_activation=layout.pooler_activation(config),
        generator=torch.Generator(),
    )
    try:
        with safe_open(folder / "model.safetensors", framework="pt") as weights:
            for place, layer in layout.layers(network).items():
                layer.load_state_dict({name: weights.get_tensor(f"{place}.{name}") for name in layer.state_dict()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise SettingError(f"{folder}/model.safetensors: {in_one_line(error)}; export it again") from None
    return TrainedModel(network.to(where).eval(), task_def, load_tokenizer(folder), _max_length(folder), where, used)


def _max_length(folder: Path) -> int:
    path = folder / "tokenizer_config.json"
    try:
        return min(int(read_json(path)["model_max_length"]), MAX_MAX_SEQ_LEN)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{path} names no model_max_length ({error}); export it again") from None


def write_sums(folder: Path) -> None:
    """Write the checksums of an exported folder.

    Raises:
        OSError: it cannot be written.
    """
    write_json(folder / SUMS, {name: sha256_of(file) for name, file in _summed(folder).items()})


def _summed(folder: Path) -> dict[str, Path]:
    """The files of an exported folder that a prediction depends on, by name."""
    return {file.name: file for file in (*content_files(folder), folder / TASK_DEF)}


def _check_sums(folder: Path) -> None:
    try:
        expected = read_json(folder / SUMS)
    except FileNotFoundError:
        log.warning("%s has no %s (an earlier version exported it), so damage to it would not be seen", folder, SUMS)
        return
    except SettingError as error:
        raise SettingError(f"{error}; export it again") from None
    present = _summed(folder)
    for name in sorted({*expected, *present}):
        if name not in present or sha256_of(present[name]) != expected.get(name):
            raise SettingError(f"{folder / name} is not what was exported (its checksum differs); export it again")
