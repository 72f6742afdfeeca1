"""A trained network with all that turns text into logits, from a run directory or from an exported folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from data_utils.errors import SettingError
from data_utils.task_def import TaskDef, load_task_defs
from data_utils.tokenizer import MAX_MAX_SEQ_LEN, TokenizerHandle, load_tokenizer
from mt_dnn.assembly import assemble, pick_device
from mt_dnn.checkpoint import load_weights
from mt_dnn.config import GLUE_TASK_DEF, RunConfig
from mt_dnn.config_parser import config_from_mapping
from mt_dnn.encoder import load_encoder
from mt_dnn.encoder_files import read_config
from mt_dnn.encoder_source import EncoderSource, resolve_encoder
from mt_dnn.head_layout import find_layout
from mt_dnn.network import Network
from mt_dnn.precision import Precision, resolve_precision
from mt_dnn.results import RunDirectory, RunResult, Status

TASK_DEF = "task_def.yml"
"""Task definition in an exported folder: what makes it known as one."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A network in evaluation mode and what it needs to read text."""

    network: Network
    task_def: TaskDef
    tokenizer: TokenizerHandle
    max_seq_len: int
    device: torch.device
    precision: Precision


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that is done, as its directory tells it."""

    directory: RunDirectory
    config: RunConfig
    result: RunResult
    description: Mapping[str, Any]
    """``run.json``."""

    @property
    def task_def(self) -> TaskDef:
        """The task's definition.

        Raises:
            SettingError: its file is missing, or does not define the task.
        """
        path = self.config.task_def
        if not path.is_file():
            raise SettingError(f"task_def: {path}, which the run was trained with, does not exist; give --task_def")
        found = load_task_defs(path)
        if self.config.task not in found:
            raise SettingError(f"task_def: {path} does not define {self.config.task}; it defines {', '.join(found)}")
        return found[self.config.task]


def read_run(path: Path, task_def: Path | None = None) -> FinishedRun:
    """Read what a run directory says.

    Args:
        path: the folder ``seed=<seed>`` of a run.
        task_def: task definition file to use instead of the run's, which may have moved.

    Raises:
        SettingError: no run, one that is not done or has failed, or a ``run.json`` of another version of this code.
    """
    directory = RunDirectory(path)
    if not directory.run_json.is_file():
        raise SettingError(f"{path} is no run directory (no run.json); give a folder like runs/cola/.../seed=1")
    result = directory.read_result()
    if result is None or result.status is Status.FAILED:
        state = "is not finished" if result is None else f"has failed ({result.error})"
        raise SettingError(f"{path} {state}; start its command again and wait for result.json")
    try:
        description = json.loads(directory.run_json.read_text(encoding="utf-8"))
        values = dict(description["config"])
        settings = values.pop("method_settings")
        recorded = Path(values["task_def"])
        if recorded.name == GLUE_TASK_DEF.name and not recorded.is_file():
            values["task_def"] = str(GLUE_TASK_DEF)  # the clone it was trained with is elsewhere
        config = config_from_mapping({**values, **settings})
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{directory.run_json} cannot be read by this version: {error}") from None
    if task_def is not None:
        config = replace(config, task_def=task_def)
    return FinishedRun(directory, config, result, description)


def load_run(run: FinishedRun, epoch: str, device: str = "auto", precision: str | None = None) -> TrainedModel:
    """Build a run's network with its trained weights.

    Args:
        run: from ``read_run``.
        epoch: ``best`` or ``last``.
        device: as ``RunConfig.device``.
        precision: as ``RunConfig.precision``; None takes the run's.

    Raises:
        SettingError: the run kept no weights of this epoch, or its encoder is not found.
    """
    _check_kept(run, epoch)
    config = replace(run.config, compile=False, device=device)
    where = pick_device(device)
    used = resolve_precision(precision or config.precision, where)
    source, task_def = resolve_encoder(config.init_checkpoint), run.task_def
    network = assemble(config, task_def, source, where, used, total_steps=1).network
    try:
        network.load_state_dict(load_weights(run.directory.checkpoints, epoch))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise SettingError(f"{run.directory.path}: its weights do not fit {config.init_checkpoint}: {reason}") from None
    return TrainedModel(network.eval(), task_def, load_tokenizer(source.folder), config.max_seq_len, where, used)


def load_exported(folder: Path, device: str = "auto", precision: str | None = None) -> TrainedModel:
    """Build the network of a folder that ``mt_dnn.export`` wrote.

    Args:
        folder: the folder.
        device: as ``RunConfig.device``.
        precision: as ``RunConfig.precision``; None is fp32.

    Raises:
        SettingError: a file is missing or damaged.
    """
    (task_def,) = load_task_defs(folder / TASK_DEF).values()
    source = EncoderSource("exported", folder)
    config = read_config(source)
    layout = find_layout(config.model_type, "tanh")
    where = pick_device(device)
    network = Network(
        load_encoder(source, hidden_dropout=0.0, attention_dropout=0.0),
        task_def,
        head_dropout=0.0,
        pooler_activation=layout.pooler_activation(config),
        generator=torch.Generator(),
    )
    head = network.heads[network.task]
    assert isinstance(head, torch.nn.Sequential)
    try:
        with safe_open(folder / "model.safetensors", framework="pt") as weights:
            for ours, theirs in ((network.pooler.dense, layout.pooler), (head[1], layout.head)):
                ours.load_state_dict({name: weights.get_tensor(f"{theirs}.{name}") for name in ("weight", "bias")})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise SettingError(f"{folder}/model.safetensors: {str(error).splitlines()[0]}; export it again") from None
    return TrainedModel(
        network.to(where).eval(),
        task_def,
        load_tokenizer(folder),
        _max_length(folder),
        where,
        resolve_precision(precision or "fp32", where),
    )


def _max_length(folder: Path) -> int:
    path = folder / "tokenizer_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["model_max_length"]
        return min(int(found), MAX_MAX_SEQ_LEN)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{path} names no model_max_length ({error}); export it again") from None


def _check_kept(run: FinishedRun, epoch: str) -> None:
    folder = run.directory.checkpoints
    if (folder / epoch / "model.safetensors").is_file():
        return
    kept = [name for name in ("best", "last") if (folder / name / "model.safetensors").is_file()]
    again = f"to get them, delete {run.directory.result_json} and start the run again with --save"
    if kept:
        raise SettingError(
            f"{run.directory.path} kept weights of the {kept[0]} epoch only (save: {run.config.save}); "
            f"use --epoch {kept[0]}, or, {again} both"
        )
    raise SettingError(f"{run.directory.path} kept no weights (save: {run.config.save}); {again} {epoch}")
