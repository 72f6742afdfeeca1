"""Tables 2 and 3 of the paper from a search, with its other files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmark import DEFAULT, in_table_order
from experiments.study.search.chosen_recipes import write_recipes
from experiments.study.search.trials import Search, SearchedCell, TrialStatus
from experiments.study.search.trials_csv import learning_rates_csv, ranges_csv, trials_csv
from experiments.study.table.paper import PaperSearch, load_paper_search
from experiments.study.table.text_table import TextTable, join_latex, join_markdown, setting_text
from experiments.study.table.titles import method_title, metric_title, task_title
from experiments.study.texts import number_text, write_texts

_RATE = "learning_rate"
_END = " †"
_END_NOTE = "† at an end of its range: better values may lie outside."


def conclude(search: Search, out: Path) -> int:
    """Write everything a search gives and print the tables.

    Returns:
        0 if every trial is over, else 1.
    """
    paper = load_paper_search(search.benchmark)
    second, third = learning_rate_tables(search, paper), range_tables(search, paper)
    texts = {
        "table2.md": join_markdown(second),
        "table2.tex": join_latex(second),
        "table2.csv": learning_rates_csv(search, paper),
        "table3.md": join_markdown(third),
        "table3.tex": join_latex(third),
        "table3.csv": ranges_csv(search, paper),
        "trials.csv": trials_csv(search),
    }
    written = write_texts(out, texts)
    from experiments.study.search.parallel_coordinates import search_figures  # matplotlib: slow to import

    recipes = write_recipes(search, out / "recipes")
    figures = search_figures(search, out)
    print(texts["table2.md"] + "\n" + texts["table3.md"])
    print("\n".join(map(str, [*written, *figures, *recipes])))
    if recipes:
        unequal = " --unequal_grids" if len({cell.over for cell in search.cells}) > 1 else ""
        listed = ",".join(map(str, recipes))
        task_def = "" if search.benchmark == DEFAULT else f" --task_def {search.benchmark.task_def}"
        print(f"\nTable 1 with these settings: python -m experiments.study --recipes {listed}{task_def}{unequal}")
        print("Give the search's --data_dir and --output_dir too, where they are not the defaults.")
    return 0 if search.is_complete else 1


def learning_rate_tables(search: Search, paper: PaperSearch) -> list[TextTable]:
    """Table 2 per encoder: the best learning rate of each method and task, the paper's below where it has one."""
    tables = []
    for encoder, tasks, methods in _encoders(search):
        rows = []
        for method in methods:
            found = [_find(search, encoder, method, task) for task in tasks]
            rows.append((method_title(method), *(_rate(cell) for cell in found)))
            published = paper.learning_rates.get((encoder, method))
            if published is not None:
                rates = (setting_text(published.get(task)) for task in tasks)
                rows.append((f"{method_title(method)}, paper", *rates))
        tables.append(
            TextTable(
                f"Table 2: best learning rates, {encoder}",
                _about(search, encoder),
                ("method", *map(task_title, tasks)),
                tuple(rows),
                _notes(rows),
            )
        )
    return tables


def range_tables(search: Search, paper: PaperSearch) -> list[TextTable]:
    """Table 3 per encoder: the values searched of every setting, and the one chosen for each task."""
    tables = []
    for encoder, tasks, methods in _encoders(search):
        rows = []
        for method in methods:
            cells = [_find(search, encoder, method, task) for task in tasks]
            keys = dict.fromkeys(key for cell in cells if cell is not None for key in cell.grid)
            for key in keys:
                values = next(cell.grid[key] for cell in cells if cell is not None and key in cell.grid)
                chosen = (_chosen(cell, key) for cell in cells)
                rows.append((method_title(method), key, _range(values), _paper_range(paper, key, values), *chosen))
            rows += [
                (method_title(method), what, "", "", *(_fact(search, cell, what) for cell in cells))
                for what in _facts(search)
            ]
        tables.append(
            TextTable(
                f"Table 3: search ranges and chosen values, {encoder}",
                _about(search, encoder) + " The paper prints the ranges, not the values chosen.",
                ("method", "setting", "range", "paper's range", *map(task_title, tasks)),
                tuple(rows),
                _notes(rows),
            )
        )
    return tables


def _about(search: Search, encoder: str) -> str:
    """The caption of every table: sampler, trials and grid sizes, seeds, and the score that chose."""
    cells = [cell for cell in search.cells if cell.name == encoder]
    counts = dict.fromkeys((method_title(cell.method), cell.planned, cell.size) for cell in cells)
    trials = "; ".join(f"{method} {planned} of {size}" for method, planned, size in counts)
    how = {
        "grid": "grid (all of it, or a random part)", "sobol": "quasi-random (Sobol)",
        "halton": "quasi-random (Halton)", "tpe": "TPE",
    }[search.sampler]  # fmt: skip
    metrics = dict.fromkeys(f"{task_title(c.task)} {metric_title(c.metric)}" for c in cells if c.metric)
    n = len(search.seeds)
    text = (
        f"Search: {how}, trials per task of the points of the grid: {trials}. Each trial is the mean over n = {n} "
        f"{'seed' if n == 1 else 'seeds'} ({', '.join(map(str, search.seeds))}) of the best epoch's score "
        f"({', '.join(metrics) or 'no run yet'}), in percent. "
    )
    if search.holdout is None:
        text += "Epochs and settings are chosen by the dev score: it is the best of many and so too high."
    else:
        text += (
            f"Epochs and settings are chosen by the score on {search.holdout:g} of the training set, held out; the dev "
            "score at the same epochs was not selected on."
        )
    if search.prune_after is not None:
        text += f" Median pruning after epoch {search.prune_after}: pruned trials made fewer epochs and are not chosen."
    if any(r is not None and r.stopped_early for cell in cells for trial in cell.trials for r in trial.results):
        text += " Some trials stopped early, by their patience: they made fewer epochs."
    return text


def _facts(search: Search) -> list[str]:
    return ["score (held out)", "score (dev)", "trials"] if search.holdout is not None else ["score (dev)", "trials"]


def _fact(search: Search, cell: SearchedCell | None, what: str) -> str:
    if cell is None:
        return "-"
    if what == "trials":
        pruned = cell.count(TrialStatus.PRUNED)
        text = f"{cell.over}" if cell.is_complete else f"{cell.over} of {cell.planned}"
        return text + (f", {pruned} pruned" if search.prune_after is not None else "")
    if cell.best is None:
        return "missing"
    return number_text(cell.best.dev if what == "score (dev)" else cell.best.score)


def _rate(cell: SearchedCell | None) -> str:
    if cell is None:
        return "-"
    return _chosen(cell, _RATE) if _RATE in cell.grid else f"{setting_text(cell.learning_rate)} (fixed)"


def _chosen(cell: SearchedCell | None, key: str) -> str:
    if cell is None or key not in cell.grid:
        return "-"
    if cell.best is None:
        return "missing"
    return setting_text(cell.chosen(key)) + (_END if cell.is_at_end(key) else "")


def _notes(rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return (_END_NOTE,) if any(text.endswith(_END) for row in rows for text in row) else ()


def _range(values: Sequence[Any]) -> str:
    return f"{{{', '.join(map(setting_text, values))}}}"


def _paper_range(paper: PaperSearch, key: str, values: Sequence[Any]) -> str:
    published = paper.ranges.get(key)
    if published is None:
        return "-"
    same = len(published) == len(values) and all(map(math.isclose, sorted(published), sorted(values)))
    return "the same" if same else _range(published)


def _encoders(search: Search) -> list[tuple[str, list[str], list[str]]]:
    """Encoder, its tasks in the paper's order, its methods as they were given."""
    found = []
    for encoder in dict.fromkeys(cell.name for cell in search.cells):
        cells = [cell for cell in search.cells if cell.name == encoder]
        tasks = in_table_order(dict.fromkeys(cell.task for cell in cells))
        found.append((encoder, tasks, list(dict.fromkeys(cell.method for cell in cells))))
    return found


def _find(search: Search, encoder: str, method: str, task: str) -> SearchedCell | None:
    key = (encoder, method, task)
    return next((cell for cell in search.cells if (cell.name, cell.method, cell.task) == key), None)
