"""Task definitions in MT-DNN's YAML schema: the form of a row, the metrics, the loss."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError, shown
from data_utils.names import check_name, did_you_mean
from data_utils.typed_values import enum_value, probability, texts, whole_number
from data_utils.yaml_file import read_yaml


class DataFormat(StrEnum):
    """Columns of a canonical row behind uid and label."""

    PremiseOnly = "PremiseOnly"
    PremiseAndOneHypothesis = "PremiseAndOneHypothesis"


class TaskType(StrEnum):
    """Kind of prediction: a class or a number."""

    Classification = "Classification"
    Regression = "Regression"


class Metric(StrEnum):
    """Scores of `data_utils.metrics`, in the order in which a task's primary one is chosen."""

    MCC = "MCC"
    F1 = "F1"
    F1MAC = "F1MAC"
    Pearson = "Pearson"
    Spearman = "Spearman"
    ACC = "ACC"


class LossCriterion(StrEnum):
    """MT-DNN's loss names. A task's own loss is one of the first two; the others are for kd_loss and adv_loss."""

    CeCriterion = "CeCriterion"
    MseCriterion = "MseCriterion"
    KlCriterion = "KlCriterion"
    SymKlCriterion = "SymKlCriterion"
    NsKlCriterion = "NsKlCriterion"
    NsSymKlCriterion = "NsSymKlCriterion"
    JSCriterion = "JSCriterion"
    HLCriterion = "HLCriterion"


_PROJECT = Path(__file__).resolve().parents[1]
_METRICS_OF = {
    TaskType.Classification: (Metric.ACC, Metric.F1, Metric.F1MAC, Metric.MCC),
    TaskType.Regression: (Metric.Pearson, Metric.Spearman),
}
_LOSS_OF = {
    TaskType.Classification: LossCriterion.CeCriterion,
    TaskType.Regression: LossCriterion.MseCriterion,
}
_REQUIRED = ("data_format", "task_type", "n_class", "metric_meta", "enable_san")
_OPTIONAL = ("labels", "split_names", "select_splits", "dropout_p", "loss", "kd_loss", "adv_loss")
_PASSED_OVER = ("encoder_type",)  # MT-DNN's, in its older files; here a run names its encoder
_MAX_CLASSES = 1_000_000
TEXT_LISTS = ("labels", "split_names", "select_splits", "metric_meta")
"""Keys whose lists hold texts, as they are written."""
_DEFAULT_SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class TaskDef:
    """One task. Built and checked by `load_task_defs`."""

    name: str
    """Top-level key of the file; a plain name without ``_`` (between task and split) and ``+`` (between tasks)."""
    data_format: DataFormat
    task_type: TaskType
    n_class: int
    """Outputs of the head: K >= 2 classes, or 1 for regression."""
    metric_meta: tuple[Metric, ...]
    labels: tuple[str, ...] | None = None
    """Label texts of the canonical file, label 0 first; None where it holds the numbers themselves."""
    split_names: tuple[str, ...] = _DEFAULT_SPLITS
    select_splits: tuple[str, ...] | None = None
    """Dev splits whose mean is the score and chooses epochs; the others are only shown. None: all of them."""
    dropout_p: float | None = None
    """Dropout before the head, in [0, 1); None leaves it to the run."""
    loss: LossCriterion = LossCriterion.CeCriterion
    kd_loss: LossCriterion | None = None
    adv_loss: LossCriterion | None = None
    enable_san: bool = False
    """Whether the head of a pair task is a stochastic answer network."""

    @property
    def pair(self) -> bool:
        """Whether an example is a pair of sentences."""
        return self.data_format is DataFormat.PremiseAndOneHypothesis

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the task's canonical file."""
        return ("uid", "label", "premise", "hypothesis") if self.pair else ("uid", "label", "premise")

    @property
    def primary_metric(self) -> Metric:
        """The metric a task is judged by: the first of MCC, F1, F1MAC, Pearson, Spearman, ACC that it has."""
        return next(metric for metric in Metric if metric in self.metric_meta)

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """Splits that end in ``dev``: one for most tasks, two for MNLI."""
        return tuple(split for split in self.split_names if split.endswith("dev"))

    def selects(self, dataset: str) -> bool:
        """Whether a dev set, by its name such as ``mnli_matched_dev``, counts into the score."""
        return self.select_splits is None or dataset in map(self.dataset_name, self.select_splits)

    @property
    def label_names(self) -> tuple[str, ...]:
        """(K,) names of the outputs: the labels of the canonical file, or ``score``."""
        if self.task_type is TaskType.Regression:
            return ("score",)
        return self.labels or tuple(map(str, range(self.n_class)))

    @property
    def dummy_label(self) -> str:
        """The label that MT-DNN writes into test files without labels."""
        return "0.0" if self.task_type is TaskType.Regression else self.label_names[0]

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the form of a row: format, type, labels, number of classes."""
        parts = [self.data_format, self.task_type, self.n_class, self.labels]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def dataset_name(self, split: str) -> str:
        """Return the name of a split's files, ``<task>_<split>``."""
        return f"{self.name}_{split}"


def split_dataset_name(name: str) -> str:
    """Return the task of a data set's name: ``mnli_matched_dev`` and ``mnli_matched`` give ``mnli``."""
    return name.split("_", 1)[0]


class TaskDefs(dict[str, TaskDef]):
    """Task name -> definition, in file order; a task that this project cannot run is refused at its look-up.

    Attributes:
        refused: name -> the refusal of each other task of the file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = path
        self.refused: dict[str, SettingError] = {}

    def find(self, name: str, setting: str) -> TaskDef:
        """Return the task that a setting asks for.

        Raises:
            SettingError: it is not defined, or refused: an unknown key or value (the legal ones are listed), or keys
                that contradict each other.
        """
        if name in self.refused:
            raise self.refused[name]
        if name not in self:
            meant = did_you_mean(name, self)
            raise SettingError(f"{setting}: unknown task {shown(name)}{meant}; {self.path} defines {', '.join(self)}")
        return self[name]


def load_task_defs(path: str | Path) -> TaskDefs:
    """Read and check a task definition file.

    Args:
        path: YAML in MT-DNN's schema, one mapping per task.

    Raises:
        SettingError: no task of it can be run; the refusal of the first.
        OSError: the file cannot be read.
    """
    content = read_yaml(path, texts=TEXT_LISTS)
    if not content:
        raise SettingError(f"{path}: holds no task; docs/data.md tells the form")
    found = TaskDefs(path)
    for name, settings in content.items():
        try:
            found[name] = from_settings(name, settings, where=str(path))
        except SettingError as error:
            found.refused[name] = error
    if not found:
        raise next(iter(found.refused.values()))
    return found


def in_this_project(path: Path) -> Path:
    """Return a task definition file that a run recorded; if it is gone, the one in the same folder of this project."""
    here = _PROJECT.joinpath(*path.parts[-3:])  # experiments/<benchmark>/<name>_task_def.yml
    return here if not path.is_file() and here.is_file() else path


def fitting_metrics(task_type: TaskType, n_class: int) -> tuple[Metric, ...]:
    """Return the metrics that a task of this kind may have."""
    return tuple(metric for metric in _METRICS_OF[task_type] if metric is not Metric.F1 or n_class == 2)


def find_prepro(path: Path) -> Path | None:
    """Find the script for the canonical files of a definition file: ``<name>_prepro.py`` for ``<name>_task_def.yml``.

    Returns:
        The script, in the same folder; None where there is none, for files of one's own.
    """
    name, is_named, _ = path.name.rpartition("_task_def.yml")
    script = path.with_name(f"{name}_prepro.py")
    return script if is_named and script.is_file() else None


def to_settings(task: TaskDef) -> dict[str, Any]:
    """Return a definition as `load_task_defs` reads it under the task's name: plain values, defaults left out."""
    settings: dict[str, Any] = {
        "data_format": str(task.data_format),
        "task_type": str(task.task_type),
        "n_class": task.n_class,
        "metric_meta": [str(metric) for metric in task.metric_meta],
        "enable_san": task.enable_san,
        "labels": None if task.labels is None else list(task.labels),
        "split_names": list(task.split_names),
        "select_splits": None if task.select_splits is None else list(task.select_splits),
        "dropout_p": task.dropout_p,
        **{key: (value := getattr(task, key)) and str(value) for key in ("loss", "kd_loss", "adv_loss")},
    }
    return {key: value for key, value in settings.items() if value is not None}


def from_settings(name: str, settings: Any, where: str) -> TaskDef:
    """Check the settings of one task and make its definition of them.

    Args:
        name: of the task.
        settings: a mapping, as under the name in a file or as `to_settings` gives it.
        where: the file, for messages.

    Raises:
        SettingError: an unknown key or value, or keys that contradict each other.
    """
    where = f"{where}: task {name}"
    check_name("task", name)
    for sign, meaning in {"_": "separates task and split", "+": "joins the tasks of one run"}.items():
        if sign in name:
            raise SettingError(
                f"{where}: a task name holds no {sign!r}, which {meaning}; write {name.replace(sign, '-')}"
            )
    if not isinstance(settings, Mapping):
        raise SettingError(f"{where}: must be a mapping with the keys {', '.join(_REQUIRED)}")
    unknown = [str(key) for key in settings if key not in _REQUIRED + _OPTIONAL + _PASSED_OVER]
    if unknown:
        raise SettingError(f"{where}: unknown key {shown(unknown[0])}; legal keys: {', '.join(_REQUIRED + _OPTIONAL)}")
    missing = [key for key in _REQUIRED if settings.get(key) is None]
    if missing:
        raise SettingError(f"{where}: key {shown(missing[0])} is missing; required keys: {', '.join(_REQUIRED)}")

    task_type = enum_value(where, "task_type", settings["task_type"], TaskType)
    labels = texts(where, "labels", settings["labels"]) if settings.get("labels") is not None else None
    splits, selecting = settings.get("split_names"), settings.get("select_splits")
    task_def = TaskDef(
        name=name,
        data_format=enum_value(where, "data_format", settings["data_format"], DataFormat),
        task_type=task_type,
        n_class=whole_number(where, "n_class", settings["n_class"]),
        metric_meta=tuple(
            enum_value(where, "metric_meta", text, Metric)
            for text in texts(where, "metric_meta", settings["metric_meta"])
        ),
        labels=labels,
        split_names=_DEFAULT_SPLITS if splits is None else texts(where, "split_names", splits),
        select_splits=None if selecting is None else texts(where, "select_splits", selecting),
        dropout_p=probability(where, "dropout_p", settings.get("dropout_p")),
        loss=_loss(where, "loss", settings) or _LOSS_OF[task_type],
        kd_loss=_loss(where, "kd_loss", settings),
        adv_loss=_loss(where, "adv_loss", settings),
        enable_san=settings["enable_san"],
    )
    _check_together(where, task_def)
    return task_def


def _check_together(where: str, task: TaskDef) -> None:
    """Raise SettingError where single keys are legal and their combination is not."""
    _check_san(where, task)
    regression = task.task_type is TaskType.Regression
    if (task.n_class != 1) if regression else not 2 <= task.n_class <= _MAX_CLASSES:
        legal = "1" if regression else f"at least 2 and at most {_MAX_CLASSES:,}"
        raise SettingError(f"{where}: n_class is {shown(task.n_class)}; for task_type {task.task_type} it is {legal}")
    if task.labels is not None:
        if regression:
            raise SettingError(f"{where}: labels are given for a Regression task; remove them")
        if len(task.labels) != task.n_class:
            raise SettingError(f"{where}: {len(task.labels)} labels for n_class {task.n_class}; the numbers must agree")
    legal_metrics = _METRICS_OF[task.task_type]
    for metric in task.metric_meta:
        if metric not in legal_metrics:
            raise SettingError(
                f"{where}: metric_meta {metric} does not fit {task.task_type}; legal values: {', '.join(legal_metrics)}"
            )
    if Metric.F1 in task.metric_meta and task.n_class != 2:
        raise SettingError(
            f"{where}: metric_meta F1 is the F1 of class 1 of two; n_class is {task.n_class}: take F1MAC, the mean "
            "over the classes"
        )
    if task.loss is not _LOSS_OF[task.task_type]:
        raise SettingError(f"{where}: loss {task.loss} does not fit {task.task_type}; use {_LOSS_OF[task.task_type]}")
    for split in task.split_names:
        check_name(f"{where}: split", split)
    for split in task.select_splits or ():
        if split not in task.dev_splits:
            legal = ", ".join(task.dev_splits) or "none: no split ends in dev"
            raise SettingError(f"{where}: select_splits holds {shown(split)}, no dev split; legal values: {legal}")


def _check_san(where: str, task: TaskDef) -> None:
    if not isinstance(task.enable_san, bool):
        raise SettingError(f"{where}: enable_san is {shown(task.enable_san)}; legal: true or false")
    if task.enable_san and not task.pair:
        raise SettingError(
            f"{where}: enable_san is true, but a SAN head compares two texts; data_format {task.data_format} has one: "
            "set enable_san: false"
        )


def _loss(where: str, key: str, settings: Mapping[str, Any]) -> LossCriterion | None:
    return None if settings.get(key) is None else enum_value(where, key, settings[key], LossCriterion)
