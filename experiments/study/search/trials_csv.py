"""The trials of a search as CSV, unrounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from experiments.study.search.trials import Search, SearchedCell, TrialStatus
from experiments.study.table.paper import PaperSearch
from experiments.study.table.text_table import setting_text
from experiments.study.texts import csv_text

_RATE = "learning_rate"
_FACTS = ("selected_on", "score", "dev", "n", "trials", "planned", "pruned", "grid_points", "sampler")


def learning_rates_csv(search: Search, paper: PaperSearch) -> str:
    """One line per (encoder, method, task)."""
    rows: list[list[object]] = [["encoder", "method", "task", _RATE, "paper", *_FACTS]]
    for cell in search.cells:
        rate = cell.chosen(_RATE) if _RATE in cell.grid else cell.learning_rate
        published = paper.learning_rates.get((cell.name, cell.method), {}).get(cell.task)
        rows.append([cell.name, cell.method, cell.task, rate, published, *_facts(search, cell)])
    return csv_text(rows)


def ranges_csv(search: Search, paper: PaperSearch) -> str:
    """One line per (encoder, method, task) and setting."""
    rows: list[list[object]] = [
        ["encoder", "method", "task", "setting", "range", "paper_range", "chosen", "at_end", *_FACTS]
    ]
    for cell in search.cells:
        for key, values in cell.grid.items():
            published = _listed(paper.ranges[key]) if key in paper.ranges else None
            at_end = cell.is_at_end(key) if cell.best is not None else None
            rows.append(
                [cell.name, cell.method, cell.task, key, _listed(values), published, cell.chosen(key), at_end,
                 *_facts(search, cell)]
            )  # fmt: skip
    return csv_text(rows)


def trials_csv(search: Search) -> str:
    """One line per trial; a trial without a score has none here, its status says why."""
    keys = list(dict.fromkeys(key for cell in search.cells for key in cell.grid))
    rows: list[list[object]] = [
        ["encoder", "method", "task", "trial", "status", "selected_on", "score", "dev", "run_id", *keys]
    ]
    for cell in search.cells:
        for trial in cell.trials:
            rows.append(
                [cell.name, cell.method, cell.task, trial.number, trial.status.value, _selected_on(search),
                 _or_none(trial.score), _or_none(trial.dev), trial.run_id, *(trial.settings.get(key) for key in keys)]
            )  # fmt: skip
    return csv_text(rows)


def _facts(search: Search, cell: SearchedCell) -> list[object]:
    best = cell.best
    scores = (best.score, best.dev) if best is not None else (None, None)
    return [_selected_on(search), *scores, len(search.seeds), cell.over, cell.planned, cell.count(TrialStatus.PRUNED),
            cell.size, search.sampler]  # fmt: skip


def _selected_on(search: Search) -> str:
    return "dev" if search.holdout is None else "holdout"


def _or_none(score: float) -> float | None:
    return None if math.isnan(score) else score


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(setting_text, values))
