"""Scores of a trained model on a labelled file: every metric that fits its task."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_utils.canonical_tsv import label_value, read_canonical, unique_uids
from data_utils.errors import SettingError, shown
from data_utils.labelled_texts import ColumnNames, labelled_texts, unused_skips
from data_utils.metrics import compute_metrics
from data_utils.table_file import RawTable
from data_utils.task_def import TaskDef, TaskType, fitting_metrics
from data_utils.text_rows import TextRows
from mt_dnn.trained.ensemble import predict_together
from mt_dnn.trained.load import TrainedModel
from mt_dnn.trained.prediction import PIECE


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """N rows to be scored against their labels."""

    rows: TextRows
    labels: Sequence[float]
    """(N,) class numbers of the model's task, or scores."""
    notes: Sequence[str] = ()
    """Settings of the reading that changed nothing."""


def canonical_rows(path: Path, task_def: TaskDef) -> LabelledRows:
    """Read a canonical file of the model's task.

    Raises:
        SettingError: a malformed row, a repeated uid, or a label that the task has not.
    """
    found = read_canonical(path, task_def)
    unique_uids(np.char.encode(found.uids), path)
    return LabelledRows(TextRows(found.uids, found.premise, found.hypothesis), found.labels.tolist())


def table_rows(
    table: RawTable,
    names: ColumnNames,
    task_def: TaskDef,
    skip: Collection[str] = (),
    label_map: Mapping[str, str] = {},
) -> LabelledRows:
    """Make rows of a table, its labels mapped by name to the task's.

    Args:
        table: the file.
        names: its columns.
        task_def: the model's task.
        skip: labels whose rows are left out; the empty text stands for no label.
        label_map: label of the file -> label of the task, where they are called otherwise.

    Raises:
        SettingError: a row without a label, one that the task has not, or texts that are more or fewer than its.
    """
    if (names.text_pair is not None) is not task_def.pair:
        raise SettingError(f"--text_pair: task {task_def.name} has {'two texts' if task_def.pair else 'one text'}")
    scores = task_def.task_type is TaskType.Regression
    found = labelled_texts([table], names, scores, skip)
    values = []
    remedy = "" if scores else "; name the one that it is with --label_map, such as neg=0,pos=1"
    for row, label in enumerate(found.labels):
        if label is None:
            raise SettingError(f"{found.place(row)} has no label; --skip_label '' leaves such rows out")
        try:
            values.append(label_value((label_map or {}).get(label, label), task_def))
        except SettingError as error:
            raise SettingError(f"{found.place(row)}: {error}{remedy}") from None
    hypothesis = found.texts[1] if task_def.pair else None
    notes = unused_skips(skip, [found])
    unmapped = [given for given in label_map if given not in found.labels]
    notes += [f"--label_map {given}={label_map[given]}: no row has {shown(given)}" for given in unmapped]
    return LabelledRows(TextRows(found.uids, found.texts[0], hypothesis), values, notes)


def parse_label_map(text: str | None) -> dict[str, str]:
    """Read pairs such as ``neg=0,pos=1``.

    Raises:
        SettingError: a part without ``=``.
    """
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if bad := ["".join(pair) for pair in pairs if not pair[1]]:
        raise SettingError(f"--label_map: {shown(bad[0])} is not FILE_LABEL=TASK_LABEL, such as neg=0,pos=1")
    return {given.strip(): label.strip() for given, _, label in pairs}


def logits_on(
    models: Sequence[TrainedModel], labelled: LabelledRows, batch_tokens: int, name: str
) -> npt.NDArray[np.float32]:
    """Compute (N, K) logits of labelled rows, the mean of several models (:func:`data_utils.ensemble.mean_logits`).

    Args:
        models: from ``mt_dnn.trained.load``, of one task.
        labelled: the rows, at least one.
        batch_tokens: tokens of a batch.
        name: source of the texts, for messages.

    Raises:
        SettingError: a text does not fit into the encoder's tables.
    """
    rows = labelled.rows

    def pieces() -> Iterator[TextRows]:
        for start in range(0, len(rows.uids), PIECE):
            part = slice(start, start + PIECE)
            hypothesis = None if rows.hypothesis is None else rows.hypothesis[part]
            yield TextRows(rows.uids[part], rows.premise[part], hypothesis)

    return np.concatenate([found for _, found in predict_together(models, pieces(), batch_tokens, name)])


def score(task_def: TaskDef, logits: npt.NDArray[np.float32], labels: Sequence[float]) -> dict[str, float]:
    """Score (N, K) logits by N labels; metric -> percent, every one that fits the task, its primary one first."""
    metrics = dict.fromkeys((task_def.primary_metric, *fitting_metrics(task_def.task_type, task_def.n_class)))
    return compute_metrics(replace(task_def, metric_meta=tuple(metrics)), logits, np.asarray(labels))
