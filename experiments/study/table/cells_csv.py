"""A table as CSV: a line per cell, and a line per run."""

from __future__ import annotations

from experiments.study.table.cells import SELECTIONS, Cell, Table, known_control
from experiments.study.table.paper import Paper
from experiments.study.texts import csv_text
from mt_dnn.results import Status


def cells_csv(table: Table, paper: Paper) -> str:
    """Long form, one line per cell and selection rule; numbers unrounded, a missing mean is empty."""
    rows: list[list[object]] = [
        ["encoder", "method", "task", "metric", "selection", "n", "expected", "mean", "std", "control", "minus_control",
         "minus_control_std", "minus_control_n", "minus_control_low", "minus_control_high", "trials", "paper",
         "paper_inferred", "degenerate", "diverged", "failed", "missing_seeds", "run_id",
         "stopped_early"]
    ]  # fmt: skip
    for (encoder, method, task), cell in _sorted_cells(table):
        published = paper.row(encoder, method, table.tasks)
        for selection in SELECTIONS:
            score = published.scores.get(task) if published is not None and selection == "best" else None
            control = known_control(method)
            gain = table.minus(encoder, method, control, task, selection) if control is not None else None
            against: tuple[object, ...] = (None,) * 6
            if gain is not None:
                interval = gain.interval
                against = (control, gain.mean, gain.std, gain.n, interval.low, interval.high)
            rows.append(
                [encoder, method, task, table.metric(task), selection, cell.n(selection), len(cell.expected),
                 cell.mean(selection), cell.std(selection), *against, cell.trials,
                 score, published.inferred if score and published else None,
                 *(cell.count(s) for s in (Status.DEGENERATE, Status.DIVERGED, Status.FAILED)),
                 " ".join(map(str, cell.missing)), cell.run_id, len(cell.stopped_early)]
            )  # fmt: skip
    return csv_text(rows)


def seeds_csv(table: Table) -> str:
    """One line per run and selection rule; failed runs have a status and no score."""
    rows: list[list[object]] = [
        [
            "encoder",
            "method",
            "task",
            "run_id",
            "seed",
            "selection",
            "epoch",
            "score",
            "status",
            "error",
            "stopped_early",
        ]
    ]
    for key, cell in _sorted_cells(table):
        for result in cell.results:
            for selection in SELECTIONS:
                epoch = result.best if selection == "best" else result.last
                score = cell.scores(selection).get(result.seed)
                rows.append([*key, cell.run_id, result.seed, selection, epoch.epoch if epoch else None, score,
                             result.status.value, result.error, result.stopped_early])  # fmt: skip
    return csv_text(rows)


def _sorted_cells(table: Table) -> list[tuple[tuple[str, str, str], Cell]]:
    keys = [(e, m, t) for e in table.encoders for m in table.methods for t in table.tasks]
    return [(key, table.cells[key]) for key in keys if key in table.cells]
