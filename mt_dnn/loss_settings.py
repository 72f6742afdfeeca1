"""Settings of the training loss: label smoothing and the weights of classes.

The loss of a step is the sum of its examples' losses over their number, weights or not: an example of a class of weight
2 counts twice, and the mean weight of the rows trained on scales the gradient. torch's own mean, over the sum of the
batch's weights, would make an example's share depend on its neighbours, and on how a step is divided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data_utils.errors import SettingError, shown
from data_utils.names import did_you_mean
from data_utils.task_def import TaskDef, TaskType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BALANCED = "balanced"
LEGAL_WEIGHTS = f"{BALANCED}, or a number > 0 for each label, such as negative=1,positive=3"


def parse_weights(text: str) -> dict[str, float] | None:
    """Read the weights of ``class_weights``; a comma before which no weight stands belongs to its label.

    Returns:
        Label -> weight, by label; None for ``balanced``.

    Raises:
        ValueError: it is no list of labels with numbers > 0, each label once.
    """
    if text == BALANCED:
        return None
    weights: dict[str, float] = {}
    label = ""
    for part in text.split(","):
        label += part
        name, equals, number = label.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            label += ","
            continue
        name, label = name.strip(), ""
        if not equals or not name or name in weights or not 0.0 < weight < math.inf:
            raise ValueError(text)
        weights[name] = weight
    if label or not weights:
        raise ValueError(text)
    return dict(sorted(weights.items()))


def are_weights(text: str, least: float = 0.0, most: float = math.inf) -> bool:
    """Whether ``class_weights`` can be read, and every weight lies in a range."""
    try:
        weights = parse_weights(text)
    except ValueError:
        return False
    return weights is None or all(least <= weight <= most for weight in weights.values())


def canonical_weights(text: str | None) -> str | None:
    """One way to write the same weights, for the run's identity."""
    if text is None:
        return None
    weights = parse_weights(text)
    return BALANCED if weights is None else ",".join(f"{label}={weight!r}" for label, weight in weights.items())


def check_loss(label_smoothing: float, class_weights: str | None, task_defs: Sequence[TaskDef]) -> None:
    """Refuse settings of the loss that the tasks of a run have no use for. Tasks with scores go on without them.

    Raises:
        SettingError: no task has classes, or the labels with weights are not the task's.
    """
    given = {"label_smoothing": label_smoothing or None, "class_weights": class_weights}
    for name, value in given.items():
        if value is not None and all(task_def.task_type is TaskType.Regression for task_def in task_defs):
            tasks = ", ".join(task_def.name for task_def in task_defs)
            raise SettingError(f"{name} is {value}, but task {tasks} has scores and no classes; leave it out")
    if class_weights is None or (weights := parse_weights(class_weights)) is None:
        return
    if len(task_defs) > 1:
        raise SettingError(f"class_weights is {class_weights}, but the run has several tasks; legal: {BALANCED}")
    (task_def,) = task_defs
    labels = task_def.label_names
    for label in weights:
        if label not in labels:
            raise SettingError(
                f"class_weights: task {task_def.name} has no label {shown(label)}{did_you_mean(label, labels)}; "
                f"it has {', '.join(labels)[:300]}"
            )
    if missing := [label for label in labels if label not in weights]:
        raise SettingError(f"class_weights: no weight of label {shown(missing[0])}; give each label one, such as 1")


def class_weights_of(class_weights: str, task_def: TaskDef, classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the weights of a task's classes.

    ``balanced`` is N / (K n), n the rows of a class: every class weighs the same in sum, a row 1 on average.

    Args:
        class_weights: As :func:`check_loss` has found it right.
        task_def: With K classes.
        classes: (N,) of the rows that are trained on.

    Returns:
        (K,).

    Raises:
        SettingError: ``balanced``, and a class has no row.
    """
    import numpy as np

    weights = parse_weights(class_weights)
    if weights is not None:
        return np.array([weights[label] for label in task_def.label_names])
    rows = np.bincount(classes, minlength=task_def.n_class)
    if not rows.all():
        raise SettingError(
            f"class_weights is {BALANCED}, but none of the {len(classes)} rows trained on has the label "
            f"{shown(task_def.label_names[int(rows.argmin())])} of task {task_def.name}; train on more "
            "rows or give each label a weight"
        )
    return np.asarray(len(classes) / (task_def.n_class * rows))


def changed_loss(settings: Mapping[str, Any]) -> str:
    """Say in what the loss that a run trains with, and logs, is not its task's own; empty where it is."""
    parts = {"label_smoothing": settings.get("label_smoothing") or None, "class_weights": settings.get("class_weights")}
    if settings.get("mkd_opt"):
        parts["kd_weight"] = settings.get("kd_weight")
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)
