"""A table as CSV: a line per cell, and a line per run; ``on`` names another set, if one judges."""

from __future__ import annotations

from experiments.study.table.cells import Cell, Selection, Table, known_control
from experiments.study.table.paper import Paper
from experiments.study.texts import csv_text
from mt_dnn.results import Status


def cells_csv(table: Table, paper: Paper) -> str:
    """Long form, one line per cell and selection rule, then of each other set; a missing mean is empty."""
    rows: list[list[object]] = [
        ["encoder", "method", "task", "metric", "selection", "on", "n", "expected", "mean", "std", "control",
         "minus_control", "minus_control_std", "minus_control_n", "minus_control_low", "minus_control_high", "trials",
         "paper", "paper_inferred", "degenerate", "diverged", "failed", "missing_seeds", "run_id", "stopped_early"]
    ]  # fmt: skip
    for judged, selections in _all_judgements(table):
        for key, cell in _sorted_cells(judged):
            rows += [[*key, *_values(judged, cell, selection, paper)] for selection in selections]
    return csv_text(rows)


def _values(table: Table, cell: Cell, selection: Selection, paper: Paper) -> list[object]:
    encoder, method, task = cell.encoder, cell.method, cell.task
    of_dev = selection == "best" and not table.judged_on
    published = paper.row(encoder, method, table.tasks) if of_dev else None
    score = published.scores.get(task) if published is not None else None
    control = known_control(method)
    gain = table.minus(encoder, method, control, task, selection) if control is not None else None
    against: tuple[object, ...] = (None,) * 6
    if gain is not None:
        against = (control, gain.mean, gain.std, gain.n, gain.interval.low, gain.interval.high)
    return [
        table.metric(task), table.selection_name(selection), table.judged_on, cell.n(selection), len(cell.expected),
        cell.mean(selection), cell.std(selection), *against, cell.trials, score,
        published.inferred if score and published else None,
        *(cell.count(s) for s in (Status.DEGENERATE, Status.DIVERGED, Status.FAILED)),
        " ".join(map(str, cell.missing)), cell.run_id, len(cell.stopped_early),
    ]  # fmt: skip


def seeds_csv(table: Table) -> str:
    """One line per run and selection rule, then of each other set; failed runs have a status and no score."""
    rows: list[list[object]] = [
        ["encoder", "method", "task", "run_id", "seed", "selection", "on", "epoch", "score", "status", "error",
         "stopped_early"]
    ]  # fmt: skip
    for judged, selections in _all_judgements(table):
        for key, cell in _sorted_cells(judged):
            for result in cell.results:
                for selection in selections:
                    epoch = result.best if selection == "best" else result.last
                    score = cell.scores(selection).get(result.seed)
                    rows.append([*key, cell.run_id, result.seed, judged.selection_name(selection), judged.judged_on,
                                 epoch.epoch if epoch else None, score, result.status.value, result.error,
                                 result.stopped_early])  # fmt: skip
    return csv_text(rows)


def _all_judgements(table: Table) -> list[tuple[Table, tuple[Selection, ...]]]:
    return [*table.judgements(), (table.at_kept_weights(), ("best",))]


def _sorted_cells(table: Table) -> list[tuple[tuple[str, str, str], Cell]]:
    keys = [(e, m, t) for e in table.encoders for m in table.methods for t in table.tasks]
    return [(key, table.cells[key]) for key in keys if key in table.cells]
