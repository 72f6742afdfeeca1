"""The token caches of one run: opened when fresh, made when missing or stale."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_utils.batching import training_subset
from data_utils.errors import SettingError, shown
from data_utils.holdout import held_out_rows, take
from data_utils.soft_labels import read_soft_labels
from data_utils.task_def import TaskDef, TaskDefs, TaskType, find_prepro, load_task_defs, split_dataset_name
from data_utils.token_cache import TokenCache, cache_dir_for, ensure_cache
from data_utils.tokenizer import load_tokenizer
from mt_dnn.config import RunConfig, default_of
from mt_dnn.distillation import check_distillation
from mt_dnn.epoch_order import check_mixing
from mt_dnn.loss_settings import check_loss
from mt_dnn.starting_point import resolve_start

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Datasets:
    """Training set and dev sets of one task of a run, tokenised."""

    task_def: TaskDef
    train: TokenCache
    train_rows: NDArray[np.int64]
    """(N,) rows of ``train`` that are trained on."""
    soft_labels: NDArray[np.float32] | None
    """(all rows of ``train``, K) logits of a teacher, of a run that distils; None where the file has none."""
    dev: dict[str, TokenCache]
    """Dataset name, e.g. ``mnli_matched_dev`` -> cache."""
    held_out: dict[str, TokenCache]
    """``<task>_holdout`` -> the rows of ``train`` that are held out; empty without ``holdout``."""
    pad_id: int
    begins: bool
    """Whether every example begins with a special token."""

    @property
    def selecting(self) -> dict[str, TokenCache]:
        """The dev sets whose mean is the score; the others are only shown."""
        return {name: cache for name, cache in self.dev.items() if self.task_def.selects(name)}

    @property
    def train_labels(self) -> NDArray[Any]:
        """(N,) labels of ``train_rows``."""
        return np.asarray(self.train.labels)[self.train_rows]

    @property
    def evaluated(self) -> dict[str, TokenCache]:
        """Every set that is scored after an epoch."""
        return self.dev | self.held_out

    @property
    def sources(self) -> dict[str, str]:
        """File name of each TSV -> SHA-256 that it had when it was tokenised."""
        return {f"{c.manifest['dataset']}.tsv": c.manifest["tsv_sha256"] for c in (self.train, *self.dev.values())}


def open_all(config: RunConfig) -> tuple[Datasets, ...]:
    """Open the caches of each task of a run; see :func:`open_datasets`.

    Raises:
        SettingError: as there, or settings that the tasks have no use for.
    """
    check_use(config)
    opened = tuple(map(open_datasets, config.by_task()))
    check_mixing(config, [len(data.train_rows) for data in opened])
    taught = [data.task_def for data in opened if data.soft_labels is not None]
    check_distillation(config, taught)
    if taught and len(taught) < len(opened):
        names = ", ".join(task_def.name for task_def in taught)
        _log.info("soft labels: %s; the other tasks' training files have none", names)
    return opened


def check_use(config: RunConfig) -> None:
    """Refuse settings that the tasks of a run have no use for.

    Raises:
        SettingError: no task is as a setting of the loss or of the SAN head wants it, or a task is not defined.
    """
    task_defs = [find_task_def(one) for one in config.by_task()]
    check_loss(config.label_smoothing, config.class_weights, task_defs)
    if any(task_def.enable_san for task_def in task_defs):
        return
    for name in ("answer_num_turn", "answer_mem_drop_p"):
        if (value := getattr(config, name)) != default_of(name):
            raise SettingError(
                f"{name} is {value}, but task {', '.join(config.tasks)} has no enable_san in its definition; leave it "
                "out, or set enable_san: true there"
            )


def open_datasets(config: RunConfig) -> Datasets:
    """Open the caches of a run with one task, making those that are missing or out of date.

    Raises:
        SettingError: unknown task or dev set, missing or malformed TSV file, damaged cache, or fewer rows, in all or of
            a class, than the run asks for.
    """
    task_def = find_task_def(config)
    if config.train_balanced:
        check_classes(task_def)
    dev_names = dev_sets(config, task_def)
    source = resolve_start(config)
    tokenizer = load_tokenizer(source.folder)
    root = config.cache_dir or config.data_dir / "cache"

    def opened(dataset: str) -> TokenCache:
        folder = cache_dir_for(root, source.name, config.max_seq_len, dataset)
        return ensure_cache(tsv_of(config, dataset), task_def, tokenizer, folder, config.max_seq_len)

    train = opened(task_def.dataset_name("train"))
    dev = {name: opened(name) for name in dev_names}
    if len(train) == 0:
        raise SettingError(f"{task_def.dataset_name('train')}.tsv has no rows")
    with naming_task(task_def):
        rows, held_out = _split(train, task_def, config.holdout)
        used = _subset(config, train, rows)
    soft = read_soft_labels(tsv_of(config, task_def.dataset_name("train")), task_def) if config.mkd_opt else None
    return Datasets(task_def, train, used, soft, dev, held_out, tokenizer.pad_id, tokenizer.begins)


@contextmanager
def naming_task(task_def: TaskDef) -> Iterator[None]:
    """Add the task to messages about its rows: a run may have several."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"{error} (task {task_def.name})") from None


def check_classes(task_def: TaskDef) -> None:
    """Refuse ``train_balanced`` of a task with scores.

    Raises:
        SettingError: it is one.
    """
    if task_def.task_type is TaskType.Regression:
        raise SettingError(
            f"train_balanced: task {task_def.name} has scores and no classes; leave it out (few_shot: --as_they_come)"
        )


def missing_file(config: RunConfig, dataset: str) -> str:
    """Return the message for a missing canonical file, with the command that makes it.

    Raises:
        SettingError: the run's task is not defined.
    """
    task_def = find_task_def(config)
    told = f"data_dir: {Path(config.data_dir) / dataset}.tsv does not exist"
    if (prepro := find_prepro(config.task_def)) is not None:
        raw = prepro.name.removesuffix("_prepro.py").upper()
        command = f"python {os.path.relpath(prepro)} --root_dir <raw {raw} folder> --out {config.data_dir}"
        return f"{told}; make it with {command}"
    columns = ", ".join(task_def.columns)
    return f"{told}; it is a file of your own: a row a line, columns {columns} between tabs, no header (docs/data.md)"


def _split(
    train: TokenCache, task_def: TaskDef, share: float | None
) -> tuple[NDArray[np.int64], dict[str, TokenCache]]:
    """Rows to train on, and the data set of those held out."""
    rows = np.arange(len(train))
    if share is None:
        return rows, {}
    held_out = held_out_of(train.labels, task_def, share)
    return np.setdiff1d(rows, held_out), {f"{task_def.name}_holdout": take(train, held_out)}


def _subset(config: RunConfig, train: TokenCache, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that a run trains on, of those not held out."""
    size = (config.train_fraction, config.train_size)
    classes = np.asarray(train.labels)[rows] if config.train_balanced else None
    return rows[training_subset(len(rows), config.seed, *size, classes)]


def held_out_of(labels: ArrayLike, task_def: TaskDef, share: float) -> NDArray[np.int64]:
    """The rows that ``holdout`` takes from the training set; see `held_out_rows`."""
    return held_out_rows(labels, share, stratify=task_def.task_type is TaskType.Classification)


def tsv_of(config: RunConfig, dataset: str) -> Path:
    """The canonical file of a data set.

    Raises:
        SettingError: it does not exist.
    """
    tsv = Path(config.data_dir) / f"{dataset}.tsv"
    if not tsv.is_file():
        raise SettingError(missing_file(config, dataset))
    return tsv


def find_task_def(config: RunConfig) -> TaskDef:
    """The definition of the task of a run with one.

    Raises:
        SettingError: its file is missing or wrong, or does not define the task.
    """
    if not config.task_def.is_file():
        raise SettingError(f"task_def: {config.task_def} does not exist; name a YAML file with task definitions")
    return _definitions(config.task_def, config.task_def.read_bytes()).find(config.task, "train_datasets")


@lru_cache(maxsize=4)
def _definitions(path: Path, content: bytes) -> TaskDefs:
    """The definitions in a file, parsed once per content: a study of a thousand runs asks a thousand times."""
    return load_task_defs(path)


def dev_sets(config: RunConfig, task_def: TaskDef) -> list[str]:
    """Dataset names to evaluate; MT-DNN's short forms (``mnli_matched``) get their ``_dev``.

    Raises:
        SettingError: a name that is no dev set of the task, or none that gives the score.
    """
    legal = [task_def.dataset_name(split) for split in task_def.dev_splits]
    if not legal:
        raise SettingError(
            f"{config.task_def}: task {task_def.name}: none of the split_names {', '.join(task_def.split_names)} "
            f"ends in dev, so nothing would be scored; name one dev and its file {task_def.dataset_name('dev')}.tsv"
        )
    if config.test_datasets is None:
        return legal
    chosen = []
    for given in config.test_datasets.split(","):
        name = given.strip()
        full = name if name.endswith("_dev") else f"{name}_dev"
        if split_dataset_name(full) != task_def.name or full not in legal:
            raise SettingError(
                f"test_datasets: {shown(name)} is no dev set of {task_def.name}; legal: {', '.join(legal)}"
            )
        chosen.append(full)
    if not any(map(task_def.selects, chosen)):
        selecting = ", ".join(filter(task_def.selects, legal))
        raise SettingError(
            f"test_datasets: {config.test_datasets}: only shown, by the task's select_splits, so nothing gives the "
            f"score; add one of {selecting}"
        )
    return chosen
