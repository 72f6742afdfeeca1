"""Whether the scores of a run tell anything, and if not, why not."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_utils.task_def import TaskDef, TaskType
from mt_dnn.data import Datasets
from mt_dnn.results import EpochScore, Status


def constant_labels(data: Datasets, rows: npt.NDArray[np.int64]) -> list[str]:
    """What is known before the run: sets on which all labels are the same, so that nothing is learned or told apart.

    Args:
        data: The run's sets.
        rows: (N,) rows of the training set that are trained on.

    Returns:
        A clause for each such set, the training set first; scores on it say nothing of a method.
    """
    sets = {data.task_def.dataset_name("train"): data.train.labels[rows]}
    sets |= {name: np.asarray(cache.labels) for name, cache in data.evaluated.items()}
    return [
        f"all {len(labels)} labels of {name} are {_shown(labels[0], data.task_def)}"
        if len(labels) > 1
        else f"{name} has one row"
        for name, labels in sets.items()
        if (labels == labels[0]).all()
    ]


def verdict(
    data: Datasets, rows: npt.NDArray[np.int64], logits: Mapping[str, Tensor], scores: Mapping[str, EpochScore]
) -> tuple[Status, str | None]:
    """How a run ended that reached its end: ok, or degenerate where its scores tell nothing.

    Args:
        data: The run's sets.
        rows: (N,) rows of the training set that were trained on.
        logits: Dev set -> (N, K) of the best epoch.
        scores: ``best`` and ``last``.

    Returns:
        The status, and why it is degenerate if that is not because one class or value is predicted for every example.
    """
    for fault in constant_labels(data, rows):
        return Status.DEGENERATE, fault
    if all(_constant(values, data.task_def.n_class) for values in logits.values()):
        return Status.DEGENERATE, None
    for name, epoch in scores.items():
        if math.isnan(epoch.score) or math.isnan(epoch.choice):
            where = "the dev sets" if math.isnan(epoch.score) else "the held-out set"
            return Status.DEGENERATE, f"{data.task_def.primary_metric} of the {name} epoch is NaN on {where}"
    return Status.OK, None


def _constant(logits: Tensor, n_class: int) -> bool:
    """Whether (N, K) logits predict one class, or one value in a regression, for all N examples."""
    predictions = logits.argmax(dim=1) if n_class > 1 else logits[:, 0]
    return bool(torch.all(predictions == predictions[0]))


def _shown(label: np.generic, task_def: TaskDef) -> str:
    if task_def.task_type is TaskType.Regression:
        return f"{float(label):g}"
    return task_def.label_names[int(label)]
