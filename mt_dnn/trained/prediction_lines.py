"""Predictions as lines of text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from data_utils.task_def import TaskDef
from mt_dnn.trained.prediction import probabilities


def tsv_header(task_def: TaskDef) -> str:
    """The line above :func:`tsv_lines`."""
    names = task_def.label_names
    return "uid\tscore\n" if task_def.n_class == 1 else "\t".join(["uid", "label", *(f"p_{n}" for n in names)]) + "\n"


def tsv_lines(task_def: TaskDef, uids: Iterable[str], logits: npt.NDArray[np.float32]) -> Iterator[str]:
    """A line per row: uid, label and probabilities of the K classes, or uid and score; logits are (N, K)."""
    if task_def.n_class == 1:
        yield from (f"{uid}\t{row[0]:.6g}\n" for uid, row in zip(uids, logits, strict=True))
        return
    for uid, row, label in zip(uids, probabilities(logits), logits.argmax(axis=1), strict=True):
        yield "\t".join([uid, task_def.label_names[label], *(f"{p:.6g}" for p in row)]) + "\n"


def json_lines(task_def: TaskDef, uids: Iterable[str], logits: npt.NDArray[np.float32]) -> Iterator[str]:
    """A line per row as a JSON object, with its logits too; logits are (N, K)."""
    names = task_def.label_names
    for uid, row, shares in zip(uids, logits, probabilities(logits), strict=True):
        values: dict[str, object] = {"uid": uid, "score": float(row[0])}
        if task_def.n_class > 1:
            chances = dict(zip(names, shares.tolist(), strict=True))
            values = {"uid": uid, "label": names[row.argmax()], "probabilities": chances, "logits": row.tolist()}
        yield json.dumps(values, ensure_ascii=False) + "\n"
