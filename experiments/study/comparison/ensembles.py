"""The seeds of a cell as an ensemble: the score of their mean prediction, from the stored logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_utils.errors import SettingError
from data_utils.mean_prediction import mean_logits
from data_utils.task_def import Metric
from experiments.study.comparison.predictions import predictions_of, score_of
from experiments.study.table.cells import SELECTIONS, Cell, Selection, Table, chosen_held_out
from experiments.study.table.gathering import run_folders
from experiments.study.table.titles import method_title, metric_title, selection_title, task_title
from experiments.study.texts import csv_text, number_text, write_texts
from mt_dnn.run_directory import RunDirectory


@dataclass(frozen=True, slots=True)
class EnsembleScore:
    """An ensemble of the seeds of a cell."""

    cell: Cell
    selection: Selection
    metric: str
    seeds: tuple[int, ...]
    """Those whose predictions were kept, at least two."""
    score: float
    """Of the mean probabilities, or scores, in percent; the mean over the dev sets of the task."""
    mean: float
    """Mean of the same seeds' own scores."""

    def line(self) -> list[object]:
        """The values of a line of the CSV file."""
        cell = self.cell
        told = [cell.encoder, cell.method, cell.task, self.metric, self.selection, len(self.seeds)]
        return [*told, self.score, self.mean, " ".join(map(str, self.seeds)), cell.run_id]


def ensemble_scores(table: Table, runs: Path) -> list[EnsembleScore]:
    """Score the seeds of every cell together; cells with fewer than two kept predictions are left out.

    Args:
        table: The table.
        runs: ``output_dir`` of its runs.

    Raises:
        SettingError: predictions that are damaged, or of seeds that were scored on different examples.
    """
    keys = [(e, m, t) for e in table.encoders for m in table.methods for t in table.tasks]
    cells = [table.cells[key] for key in keys if key in table.cells and table.metric(key[2]) in set(Metric)]
    found = [_ensemble(cell, runs, selection) for cell in cells for selection in SELECTIONS]
    return [one for one in found if one is not None]


def _ensemble(cell: Cell, runs: Path, selection: Selection) -> EnsembleScore | None:
    folders = run_folders(cell, runs)
    kept = {}
    for result in cell.results:
        epoch, directory = result.best if selection == "best" else result.last, RunDirectory(folders[result.seed])
        if result.done and epoch is not None and directory.predictions_npz.is_file():
            kept[result.seed] = result, epoch, directory.read_predictions(result)
    if len(kept) < 2:
        return None
    (first, _, _), *_ = kept.values()
    metric = Metric(first.primary_metric)
    arrays = [found for _, _, found in kept.values()]
    try:
        scores = [_score(cell, arrays, dataset, selection, metric) for dataset in first.datasets]
    except (ValueError, KeyError, IndexError) as error:
        raise SettingError(
            f"{cell.encoder}, {cell.method}, {cell.task}: the predictions of a seed are damaged ({error}); delete the "
            f"seeds' folders in {folders[first.seed].parent} to run again"
        ) from None
    own = [float(epoch.score) for _, epoch, _ in kept.values()]
    return EnsembleScore(cell, selection, str(metric), tuple(kept), float(np.mean(scores)), float(np.mean(own)))


def _score(
    cell: Cell, arrays: Sequence[dict[str, NDArray[Any]]], dataset: str, selection: Selection, metric: Metric
) -> float:
    logits, uids, labels = f"{dataset}.{selection}_logits", f"{dataset}.uids", f"{dataset}.labels"
    first = arrays[0]
    for other in arrays[1:]:
        if not all(np.array_equal(first[name], other[name]) for name in (uids, labels)):
            raise SettingError(
                f"{cell.encoder}, {cell.method}, {cell.task}: the seeds were scored on different examples of {dataset};"
                " run all on one data_dir"
            )
    mean = mean_logits(np.stack([each[logits] for each in arrays]))
    return score_of(metric, predictions_of({**first, logits: mean}, dataset, selection, metric))


def write_ensembles(table: Table, runs: Path, out: Path) -> list[Path]:
    """Write ``ensemble.md`` and ``ensemble.csv``; nothing where no cell has predictions of two seeds."""
    found = ensemble_scores(table, runs)
    if not found:
        return []
    header: list[object] = [
        "encoder", "method", "task", "metric", "selection", "n", "ensemble", "mean", "seeds", "run_id",
    ]  # fmt: skip
    text = csv_text([header, *(one.line() for one in found)])
    return write_texts(out, {"ensemble.md": _markdown(table, found), "ensemble.csv": text})


def _markdown(table: Table, found: Sequence[EnsembleScore]) -> str:
    by_key = {(one.cell.encoder, one.cell.method, one.cell.task, one.selection): one for one in found}
    tasks = [task for task in table.tasks if any(one.cell.task == task for one in found)]
    lines = [
        "# Ensembles of seeds",
        "",
        "The score of the seeds' mean prediction (probabilities, or scores of a regression), and behind it the mean of "
        "their own scores and n. Percent.",
    ]
    for encoder in table.encoders:
        for selection in SELECTIONS:
            columns = [f"{task_title(task)} {metric_title(table.metric(task))}" for task in tasks]
            title = selection_title(selection, chosen_held_out(o.cell for o in found if o.cell.encoder == encoder))
            lines += ["", f"## {encoder}, {title}", "", f"| method | {' | '.join(columns)} |"]
            lines += ["|---" * (len(tasks) + 1) + "|"]
            for method in table.rows_of(encoder):
                cells = [_entry(by_key.get((encoder, method, task, selection))) for task in tasks]
                lines.append(f"| {method_title(method)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _entry(one: EnsembleScore | None) -> str:
    if one is None:
        return "-"
    return f"{number_text(one.score)} ({number_text(one.mean)}, n = {len(one.seeds)})"
