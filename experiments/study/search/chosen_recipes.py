"""The chosen settings of a search, as recipe files for a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.study.recipe import nested
from experiments.study.recipe_file import merged, without
from experiments.study.search.trials import Search, SearchedCell
from experiments.study.texts import write_texts


def write_recipes(search: Search, folder: Path) -> list[Path]:
    """Write one recipe per (encoder, method), with the tasks that have a best trial; returns the files."""
    texts = {}
    for (encoder, method), cells in search.with_best().items():
        planned = max(cell.planned for cell in cells)
        texts[f"{encoder[:50]}_{method}_{search.sampler}{planned}.yml"] = recipe_text(search, cells)
    return write_texts(folder, texts)


def recipe_text(search: Search, cells: Sequence[SearchedCell]) -> str:
    """The recipe of one (encoder, method).

    Args:
        search: The search.
        cells: Its cells of this encoder and method, each with a best trial.
    """
    first = cells[0]
    tasks = {cell.task: _task_settings(cell) for cell in cells}
    common = _common(list(tasks.values()))
    grid: dict[str, list[Any]] = {}
    for cell in cells:
        grid |= {key: list(values) for key, values in cell.grid.items()}
    content = {
        "encoder": first.encoder,
        "method": first.method,
        "source": _source(search, cells),
        "settings": common,
        "tasks": {task: without(settings, common) for task, settings in tasks.items()},
        "chosen_from_grid": True,
        "tried": max(cell.over for cell in cells),
        "grid": grid,
    }
    comment = f"# {first.method} on {first.encoder}, written by a search; the next search of that name replaces it.\n"
    return comment + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)


def _source(search: Search, cells: Sequence[SearchedCell]) -> str:
    trials = sorted({cell.over for cell in cells})
    counted = f"{trials[0]}" if len(trials) == 1 else f"{trials[0]} to {trials[-1]}"
    chosen_on = "dev" if search.holdout is None else f"{search.holdout:g} of the training set, held out"
    pruned = "" if search.prune_after is None else f", median pruning after epoch {search.prune_after}"
    return (
        f"search {search.sampler} (sampler seed {search.sampler_seed}), {counted} trials per task with the seeds "
        f"{', '.join(map(str, search.seeds))}{pruned}; chosen by the best epoch's score on {chosen_on}; "
        f"everything else: {cells[0].recipe} ({cells[0].source})"
    )


def _task_settings(cell: SearchedCell) -> dict[str, Any]:
    assert cell.best is not None
    return merged(cell.settings, nested(cell.best.settings, cell.method))


def _common(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that all tasks have in common."""
    first = tasks[0]
    common: dict[str, Any] = {}
    for key, value in first.items():
        others = [task.get(key) for task in tasks]
        if all(isinstance(other, dict) for other in others):
            if inner := _common([other for other in others if isinstance(other, dict)]):
                common[key] = inner
        elif all(key in task for task in tasks) and all(other == value for other in others):
            common[key] = value
    return common
