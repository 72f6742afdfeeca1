"""Sentences on a table's settings: those unlike the defaults, and those of a method unlike its control's."""

from __future__ import annotations

import json

from experiments.study.recipe_file import read_recipe
from experiments.study.table.cells import Table, known_control
from experiments.study.table.titles import method_title, task_title
from mt_dnn.config import RunConfig
from mt_dnn.run_id import NOT_IDENTITY
from mt_dnn.run_reference import encoder_name

# What a comparison is about, or the same by the table's making.
_COMPARED = frozenset({"method", "init_checkpoint", "train_datasets", "test_datasets"})


def about_settings(table: Table, encoder: str) -> str:
    """A sentence with the settings that all methods have and that are not the defaults; empty where there are none."""
    defaults = json.loads(json.dumps(RunConfig().as_dict()))
    parts = []
    for key, default in defaults.items():
        if key in NOT_IDENTITY or key in _COMPARED or key == "method_settings":
            continue
        by_task = {task: value for task in table.run_tasks if (value := _common(table, encoder, task, key)) is not None}
        if set(by_task.values()) <= {_text(default)}:
            continue
        if len(by_task) == len(_tasks(table, encoder)) and len(set(by_task.values())) == 1:
            parts.append(f"{key} {next(iter(by_task.values()))}")
        else:
            listed = (f"{value} ({task_title(task)})" for task, value in by_task.items())
            parts.append(f"{key} {', '.join(listed)}")
    return f" Otherwise than by default, all methods: {'; '.join(parts)}." if parts else ""


def _common(table: Table, encoder: str, task: str, key: str) -> str | None:
    """The value that every method has on a task; None where they differ, or where it is not known."""
    cells = [cell for method in table.methods if (cell := table.cell(encoder, method, task)) is not None]
    values = {_text(cell.settings[key]) for cell in cells if key in cell.settings}
    return values.pop() if len(values) == 1 else None


def _tasks(table: Table, encoder: str) -> list[str]:
    return [task for task in table.run_tasks if any(table.cell(encoder, method, task) for method in table.methods)]


def unlike_control(table: Table, encoder: str, method: str) -> dict[str, str]:
    """Settings in which a method's runs differ from those of its control on the same task.

    Settings that cannot change a score are left out, and so are the method's own (``pats.noise_scale``), which the
    control has not.

    Returns:
        Setting -> its value and the control's, where they are the same on all tasks that differ, and these tasks, where
        they are not all; in the order of the command line. Empty for a method without a control in the table.
    """
    control = known_control(method)
    found: dict[str, dict[str, str]] = {}
    compared = []
    for task in table.run_tasks:
        ours = table.cell(encoder, method, task)
        theirs = table.cell(encoder, control, task) if control is not None else None
        if ours is None or theirs is None or not theirs.settings:
            continue
        compared.append(task)
        for key, value in ours.settings.items():
            if key in NOT_IDENTITY or key in _COMPARED or "." in key:
                continue
            if value != (other := theirs.settings.get(key)):
                found.setdefault(key, {})[task] = f" {_text(value)}, not {_text(other)}"
    texts = {}
    for key, by_task in found.items():
        values = set(by_task.values())
        on = f", on {', '.join(map(task_title, by_task))}" if len(by_task) < len(compared) else ""
        texts[key] = (values.pop() if len(values) == 1 else "") + on
    return texts


def about_recipes(table: Table, encoder: str) -> str:
    """A sentence that names the methods that were set by a recipe of another method or encoder; empty without one."""
    parts = []
    for method in table.rows_of(encoder):
        cells = [cell for task in table.run_tasks if (cell := table.cell(encoder, method, task)) is not None]
        names = {result.recipe for cell in cells for result in cell.results if result.recipe is not None}
        if taken := [name for name in sorted(names) if _is_of_another(table, encoder, method, name)]:
            parts.append(f"{method_title(method)} ({', '.join(taken)})")
    return f" By the recipe of another method or encoder: {', '.join(parts)}." if parts else ""


def _is_of_another(table: Table, encoder: str, method: str, recipe: str) -> bool:
    """Whether a name belongs to a recipe of the benchmark for another encoder or method."""
    files = (folder / f"{recipe}.yml" for folder in table.benchmark.places("recipes"))
    found = next((path for path in files if path.is_file()), None)
    if found is None or recipe == f"{encoder}_{method}":
        return False
    own = read_recipe(found)
    return (encoder_name(own.text("encoder")), own.text("method")) != (encoder, method)


def about_rates(table: Table, encoder: str) -> str:
    """A sentence that names the tasks on which methods have different learning rates; empty where there are none."""
    parts = []
    for task in _tasks(table, encoder):
        methods: dict[str, list[str]] = {}
        for method in table.rows_of(encoder):
            cell = table.cell(encoder, method, task)
            if cell is not None and "learning_rate" in cell.settings:
                methods.setdefault(_text(cell.settings["learning_rate"]), []).append(method_title(method))
        if len(methods) > 1:
            listed = "; ".join(f"{', '.join(names)} {rate}" for rate, names in methods.items())
            parts.append(f"{task_title(task)} ({listed})")
    return f" Learning rates differ on {', '.join(parts)}." if parts else ""


def about_protocol(table: Table, encoder: str) -> str:
    """A sentence with each method's settings unlike its control's; empty where there are none."""
    parts = []
    for method in table.rows_of(encoder):
        unlike = unlike_control(table, encoder, method)
        if unlike:
            listed = "; ".join(f"{key}{text}" for key, text in unlike.items())
            parts.append(f"{method_title(method)} ({listed})")
    return f" Set otherwise than the control, beside their own settings: {', '.join(parts)}." if parts else ""


def _text(value: object) -> str:
    if value is None:
        return "default"
    return f"{value:g}" if isinstance(value, float) else str(value)
