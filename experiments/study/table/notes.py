"""Footnotes of a table's cells: runs that failed, diverged, stopped early or tell nothing."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.study.table.cells import SELECTIONS, Cell, chosen_held_out
from experiments.study.table.titles import selection_title
from mt_dnn.results import Status


def cell_note(cell: Cell) -> str:
    """The footnote of a cell: what happened to its runs; empty where there is nothing to know."""
    failed = [r.seed for r in cell.results if r.status is Status.FAILED]
    happened = {
        "one value predicted for every example, or labels all the same (counted)": [
            r.seed for r in cell.results if r.status is Status.DEGENERATE
        ],
        "diverged (counted; NaN where there is no score)": [
            r.seed for r in cell.results if r.status is Status.DIVERGED
        ],
        "failed (not counted)": failed,
        "not finished": [seed for seed in cell.missing if seed not in failed],
    }
    for result in cell.stopped_early:
        assert result.last is not None
        what = f"stopped early, after epoch {result.last.epoch} of {result.epochs}"
        happened.setdefault(what, []).append(result.seed)
    for selection in SELECTIONS:
        scores = cell.scores(selection)
        if len(scores) > 1 and (cell.std(selection) or 0.0) < 1e-9:
            title = selection_title(selection, chosen_held_out([cell]))
            happened[f"the same score, {title}: no spread to judge by"] = list(scores)
    return "; ".join(f"{_seeds(seeds)} {what}" for what, seeds in happened.items() if seeds)


def _seeds(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}:"
