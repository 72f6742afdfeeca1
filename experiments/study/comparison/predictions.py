"""Predictions of finished runs for the dev examples, checked against their results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_utils.errors import SettingError
from data_utils.task_def import Metric
from experiments.study.statistics.example_bootstrap import is_regression, make_scorer
from experiments.study.table.cells import Cell, Selection
from experiments.study.table.gathering import run_folders
from mt_dnn.results import RunResult
from mt_dnn.run_directory import RunDirectory
from mt_dnn.scores_elsewhere import predictions_file, read_predictions_elsewhere


@dataclass(frozen=True, slots=True)
class Predictions:
    """One run on one dev set, examples in the order of their uids."""

    uids: NDArray[np.bytes_]
    """(N,)."""
    labels: NDArray[Any]
    """(N,) classes or scores."""
    predicted: NDArray[Any]
    """(N,) of the same kind."""
    logits: NDArray[np.float32]
    """(N, K)."""


def read_predictions(runs: Path, cell: Cell, result: RunResult, selection: Selection) -> dict[str, Predictions] | None:
    """Read a run's predictions for each of its dev sets, or for the other set that the cell is judged by.

    Args:
        runs: ``output_dir`` of the runs.
        cell: The run's cell.
        result: One of the cell's results.
        selection: Best or last epoch.

    Returns:
        Set -> predictions; None when the run has no score there (NaN or none), or kept no predictions.

    Raises:
        SettingError: the file is damaged, or does not give the score that ``result.json`` has.
    """
    epoch = result.best if selection == "best" else result.last
    directory = RunDirectory(run_folders(cell, runs)[result.seed])
    if epoch is None or math.isnan(epoch.score):
        return None
    path, arrays = _read_arrays(directory, result)
    if not arrays:
        return None
    metric = Metric(result.primary_metric)
    found = {}
    for dataset in result.datasets:
        try:
            one = predictions_of(arrays, dataset, selection, metric)
        except (ValueError, KeyError, IndexError) as error:
            raise SettingError(f"{path} is damaged ({error}); delete {path.parent} to run again") from None
        score = score_of(metric, one)
        if not math.isclose(score, epoch.metrics[dataset][metric], rel_tol=1e-6, abs_tol=1e-6):
            raise SettingError(
                f"{path} gives {metric} {score} on {dataset}, result.json says {epoch.metrics[dataset][metric]}: "
                f"they are of two runs; delete {path.parent} to run again"
            )
        found[dataset] = one
    return found


def _read_arrays(directory: RunDirectory, result: RunResult) -> tuple[Path, dict[str, NDArray[Any]]]:
    """The file of a run's predictions on the sets that judge it, and its arrays; none if they were not kept."""
    (name, *others) = result.datasets
    elsewhere = None if others else read_predictions_elsewhere(directory.path, result, name)
    if elsewhere is not None:
        return predictions_file(directory.path, name), elsewhere
    path = directory.predictions_npz
    return path, directory.read_predictions(result) if path.is_file() else {}


def predictions_of(
    arrays: Mapping[str, NDArray[Any]], dataset: str, selection: Selection, metric: Metric
) -> Predictions:
    """Turn the stored logits of a set into predictions; raises whatever damaged arrays give."""
    logits, uids = arrays[f"{dataset}.{selection}_logits"], arrays[f"{dataset}.uids"]  # (N, K), (N,)
    order = np.argsort(uids, kind="stable")
    predicted = logits[:, 0] if is_regression(metric) else logits.argmax(axis=1)
    return Predictions(uids[order], arrays[f"{dataset}.labels"][order], predicted[order], logits[order])


def score_of(metric: Metric, one: Predictions) -> float:
    """Score predictions, in percent."""
    weights = np.ones((1, len(one.labels)))
    return float(make_scorer(metric, one.predicted[None], one.labels)(weights)[0, 0])
