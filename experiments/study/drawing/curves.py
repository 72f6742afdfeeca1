"""Learning curves from the runs' ``metrics.jsonl``: dev score after each epoch, training loss on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from experiments.study.drawing import plotting
from experiments.study.table.cells import PART, Cell, Table
from experiments.study.table.gathering import run_folders
from experiments.study.table.titles import method_title, metric_title, task_title
from mt_dnn.loss_settings import changed_loss
from mt_dnn.results import RunResult, mean_score
from mt_dnn.run_directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Quantity = Literal["score", "loss"]
_QUANTITIES: tuple[Quantity, ...] = ("score", "loss")
_PER_ROW = 4


def learning_curves(table: Table, runs: Path, stem: Path) -> list[Path]:
    """Draw score and loss by epoch: the mean over the seeds and a band of one sample standard deviation.

    Args:
        table: The table.
        runs: ``output_dir`` of the runs, for their ``metrics.jsonl``.
        stem: Path of the files without suffix.

    Returns:
        The PNG, the PDF and the CSV.
    """
    panels = [(encoder, task) for encoder in table.encoders for task in table.tasks] or [("", "")]
    rows: list[list[object]] = [["encoder", "method", "task", "quantity", "epoch", "n", "mean", "std"]]
    with plotting.style():
        columns = min(_PER_ROW, len(panels))
        blocks = -(-len(panels) // columns)
        width = plotting.COLUMN if columns == 1 else 2.3 * columns
        figure, axes = plotting.canvas(2 * blocks, columns, width, 3.4 * blocks + 0.4)
        for place in range(columns * blocks):
            block, column = divmod(place, columns)
            pair = [axes[(2 * block + row) * columns + column] for row in (0, 1)]
            if place >= len(panels):
                for axis in pair:
                    axis.axis("off")
                continue
            encoder, task = panels[place]
            pair[0].set_title(task_title(task) + (f", {encoder}" if len(table.encoders) > 1 else ""), fontweight="bold")
            pair[0].set_ylabel(f"dev {metric_title(table.metric(task)) or 'score'} (%)")
            pair[1].set_ylabel(_loss_name(table, encoder, task))
            for axis, quantity in zip(pair, _QUANTITIES, strict=True):
                rows += _panel(axis, table, runs, (encoder, task), quantity)
            pair[0].sharex(pair[1])
            pair[0].tick_params(labelbottom=False)
            pair[1].set_xlabel("epoch")
            pair[1].set_xlim(left=0.0)
        plotting.legend_of_lines(figure, map(method_title, table.methods))
        return [*plotting.save(figure, stem), plotting.save_data(stem, rows)]


def _loss_name(table: Table, encoder: str, task: str) -> str:
    """The training loss, with what it is where that is not the task's own loss."""
    cells = [cell for method in table.methods if (cell := table.cell(encoder, method, task)) is not None]
    changed = {changed_loss(cell.settings) for cell in cells}
    said = "another one in some rows" if len(changed) > 1 else "".join(changed)
    return f"training loss\n({said})" if said else "training loss"


def _panel(axis: Axes, table: Table, runs: Path, place: tuple[str, str], quantity: Quantity) -> list[list[object]]:
    from matplotlib.ticker import MaxNLocator

    encoder, task = place
    rows: list[list[object]] = []
    for number, method in enumerate(table.methods):
        cell = table.cell(encoder, method, task)
        curves = _curves(cell, runs, quantity) if cell is not None else []
        # Where a run has stopped early the mean would be of the others alone: it is not shown.
        epochs = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
        if not epochs:
            continue
        values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
        plotting.mean_and_band(axis, epochs, values, plotting.look(number), markers=quantity == "score")
        mean, std = plotting.mean_std(values)
        rows += [
            [encoder, method, task, quantity, epoch, len(curves), float(mean[i]),
             float(std[i]) if len(curves) > 1 else None]
            for i, epoch in enumerate(epochs)
        ]  # fmt: skip
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axis.grid()
    return rows


def _curves(cell: Cell, runs: Path, quantity: Quantity) -> list[dict[float, float]]:
    folders, curves = run_folders(cell, runs), []
    for result in (one for one in cell.results if one.done):
        records = RunDirectory(folders[result.seed]).read_metrics(result)
        if quantity == "loss":
            curves.append(read_losses(records))
        else:
            curves.append(_scores_of_part(records, result) if PART in cell.task else read_scores(records))
    return [curve for curve in curves if curve]


def read_scores(records: Sequence[Mapping[str, Any]]) -> dict[float, float]:
    """Epoch -> dev score in percent, from the lines of a run's ``metrics.jsonl``."""
    return {record["epoch"]: record["score"] for record in records if "evaluation" in record}


def _scores_of_part(records: Sequence[Mapping[str, Any]], result: RunResult) -> dict[float, float]:
    """Epoch -> dev score of one task of a run with several."""
    return {
        record["epoch"]: mean_score(record["evaluation"], result.datasets, result.primary_metric)
        for record in records
        if "evaluation" in record
    }


def read_losses(records: Sequence[Mapping[str, Any]]) -> dict[float, float]:
    """Epochs passed -> mean training loss since the last log line, from the lines of a run's ``metrics.jsonl``.

    An epoch ends with a log line, so the largest step that is logged for one is its last.
    """
    records = [record for record in records if "loss" in record]
    if not records:
        return {}
    per_epoch = max(record["step"] for record in records if record["epoch"] == records[0]["epoch"])
    return {round(record["step"] / per_epoch, 6): record["loss"] for record in records}
