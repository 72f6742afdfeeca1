"""Several trained models of one task as one: the mean of their probabilities, or of their scores."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_utils.ensemble import mean_logits
from data_utils.errors import SettingError
from data_utils.task_def import to_settings
from data_utils.text_rows import TextRows
from mt_dnn.trained.load import TrainedModel
from mt_dnn.trained.prediction import predict


def predict_together(
    models: Sequence[TrainedModel], pieces: Iterable[TextRows], batch_tokens: int = 8192, name: str = "texts"
) -> Iterator[tuple[TextRows, npt.NDArray[np.float32]]]:
    """Compute the mean logits of texts by one or several models; see :func:`mt_dnn.trained.prediction.predict`."""
    copies = itertools.tee(pieces, len(models))
    each = [predict(model, copy, batch_tokens, name) for model, copy in zip(models, copies, strict=True)]
    for found in zip(*each, strict=True):
        yield found[0][0], mean_logits(np.stack([logits for _, logits in found]))


def check_alike(models: Sequence[TrainedModel], paths: Sequence[Path]) -> None:
    """Refuse models of different tasks.

    Raises:
        SettingError: names the first whose task definition is another, and what differs.
    """
    first = to_settings(models[0].task_def)
    for model, path in zip(models, paths, strict=True):
        other = to_settings(model.task_def)
        if model.task_def.name != models[0].task_def.name:
            told = f"is of the task {model.task_def.name}, {paths[0]} of {models[0].task_def.name}"
        elif differing := [key for key in {**first, **other} if first.get(key) != other.get(key)]:
            told = f"has another {differing[0]} of the task than {paths[0]}"
        else:
            continue
        raise SettingError(f"--ensemble: {path} {told}; give models of one task")
