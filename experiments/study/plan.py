"""The plan of a study: its command line as runs and seeds, and their description in ``study.json``."""

from __future__ import annotations

import argparse
import functools
import math
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.batching import training_subset
from data_utils.canonical_tsv import read_canonical
from data_utils.errors import SettingError, shown
from data_utils.names import check_name
from data_utils.task_def import TaskDef, load_task_defs
from experiments.benchmark import Benchmark, in_table_order
from experiments.study.launch.job import Job
from experiments.study.launch.launcher import check_launcher
from experiments.study.recipe import Recipe, check_budgets, find_recipes, load_recipe, run_configs
from experiments.study.recipe_file import find_recipe_file
from experiments.study.settings import check_method, parse_overrides
from module.methods import control_of
from mt_dnn.config import RunConfig
from mt_dnn.data import (
    check_classes,
    check_use,
    dev_sets,
    find_task_def,
    held_out_of,
    missing_file,
    naming_task,
    tsv_of,
)
from mt_dnn.epoch_order import check_mixing, steps_per_epoch
from mt_dnn.run_id import run_dir, run_id
from mt_dnn.run_reference import encoder_name

_ROOT = Path(__file__).resolve().parents[2]
_MOST_SEEDS = 1000  # of a cell; a table of more is a slip of the keyboard


def plan_jobs(chosen: argparse.Namespace) -> list[Job]:
    """All runs of the study: recipes x tasks x seeds.

    Raises:
        SettingError: an unknown recipe, task, seed or setting, or two recipes for the same cell.
    """
    check_launcher(chosen)
    for name in ("trials", "prune_after"):
        if chosen.search is None and getattr(chosen, name) is not None:
            raise SettingError(f"--{name} is for --search; drop it or add --search")
    overrides = chosen_overrides(chosen)
    recipes = chosen_recipes(chosen)
    if not chosen.unequal_grids and chosen.search is None:  # a search chooses the settings anew
        check_budgets(recipes)
    seeds = _search_seeds(chosen) if chosen.search is not None else parse_seeds(chosen.seeds)
    groups = dict.fromkeys(part for recipe in recipes for part in recipe.method.split("+"))
    groups |= dict.fromkeys(task for recipe in recipes for task in _tasks(chosen, recipe))
    for key in overrides:
        if "." in key and key.partition(".")[0] not in groups:
            raise SettingError(f"--set {key}: neither a method nor a task of this study; here: {', '.join(groups)}")
    configs: dict[Path, RunConfig] = {}
    cells: dict[tuple[str, str, str], Recipe] = {}
    for recipe in recipes:
        made = run_configs(
            recipe, _tasks(chosen, recipe), seeds, overrides,
            task_def=chosen.task_def, data_dir=chosen.data_dir, output_dir=chosen.output_dir,
        )  # fmt: skip
        for config in made:
            other = cells.setdefault((config.encoder, config.method, config.task), recipe)
            if other is not recipe:
                raise SettingError(f"{other.path} and {recipe.path} both set {config.method} on {config.encoder}")
            configs[run_dir(config)] = config
    _tell_borrowed(recipes, {recipe.name: _tasks(chosen, recipe) for recipe in recipes})
    trials = {(r.encoder, r.method): r.trials for r in recipes}
    by_name = {(encoder_name(encoder), method): n for (encoder, method), n in trials.items()}
    return [make_job(c, folder, by_name[c.encoder, c.method]) for folder, c in configs.items()]


def _tell_borrowed(recipes: Sequence[Recipe], tasks: Mapping[str, Sequence[str]]) -> None:
    """Name on standard error the recipes that are taken for another method, encoder or task."""
    for sentence in dict.fromkeys(sentence for recipe in recipes for sentence in recipe.borrowed):
        print(sentence, file=sys.stderr)
    unnamed = {task: recipe.name for recipe in recipes for task in tasks[recipe.name] if task not in recipe.tasks}
    if unnamed:
        print(f"no recipe names {', '.join(unnamed)}: the recipes' common settings are taken", file=sys.stderr)


def parse_seeds(text: str, flag: str = "--seeds") -> list[int]:
    """``"5"`` -> 1 to 5; ``"3,7,11"`` -> those.

    Args:
        text: The flag's value.
        flag: The flag, for messages.

    Raises:
        SettingError: anything else, more than 1,000 of them, a seed beyond 2^63 or one that stands twice.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdecimal() for part in parts) or text.strip("0 ") == "":
        raise SettingError(
            f"{flag} {shown(text)}: give a count such as 5, or seeds such as 3,7,11 (3, is the one seed 3)"
        )
    if long := [part for part in parts if len(part) > 19 or int(part) >= 2**63]:
        raise SettingError(f"{flag}: {shown(long[0])} is too large; legal: seeds in [0, 2^63)")
    seeds = [int(part) for part in parts]
    if (len(seeds) if "," in text else seeds[0]) > _MOST_SEEDS:
        raise SettingError(f"{flag} {shown(text)}: legal: at most {_MOST_SEEDS} seeds")
    if twice := [seed for seed, n in Counter(seeds).items() if n > 1]:
        raise SettingError(f"{flag} {shown(text)}: seed {twice[0]} stands there twice; give each once")
    return seeds if "," in text else list(range(1, seeds[0] + 1))


def chosen_overrides(chosen: argparse.Namespace) -> dict[str, Any]:
    """Dotted setting -> value, of ``--set`` and ``--holdout``.

    Raises:
        SettingError: an unknown setting, or one that is not set so.
    """
    if chosen.holdout is not None and not 0.0 < chosen.holdout < 1.0:
        raise SettingError(f"--holdout is {chosen.holdout}; legal: a share in (0, 1)")
    overrides = parse_overrides(chosen.overrides)
    return overrides if chosen.holdout is None else {**overrides, "holdout": chosen.holdout}


def _search_seeds(chosen: argparse.Namespace) -> list[int]:
    seeds = parse_seeds(chosen.search_seeds, "--search_seeds")
    if both := sorted(set(seeds) & set(parse_seeds(chosen.seeds))):
        raise SettingError(
            f"--search_seeds {chosen.search_seeds}: {both[0]} is one of --seeds {chosen.seeds} too, so the table of "
            "the chosen settings would report what they were chosen on; give other seeds, such as 101,"
        )
    return seeds


def study_name(chosen: argparse.Namespace, jobs: Sequence[Job]) -> str:
    """Folder of the study's results: ``--name``, or its encoders."""
    return check_name("study", chosen.name or "+".join(sorted({job.config.encoder for job in jobs}))[:100])


def describe(chosen: argparse.Namespace, **content: Any) -> dict[str, Any]:
    """The content of ``study.json`` and the like: folder of the runs, command line, and further content."""
    return {"output_dir": str(chosen.output_dir), "command": command_line(), **content}


def cells_of(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The cells of some runs with their run ids and seeds, for ``study.json``."""
    seeds: dict[tuple[str | int, ...], list[int]] = {}
    for job in jobs:
        c = job.config
        seeds.setdefault((c.encoder, c.method, c.task, run_id(c), c.recipe or "", job.trials), []).append(c.seed)
    keys = ("encoder", "method", "task", "run_id", "recipe", "trials")
    return [{**dict(zip(keys, cell, strict=True)), "seeds": s} for cell, s in seeds.items()]


def command_line() -> str:
    """This process's command, as it can be given again."""
    program, *arguments = sys.argv
    path = Path(program).resolve()
    module = path.relative_to(_ROOT).with_suffix("").parts if path.is_relative_to(_ROOT) else ()
    module = module[:-1] if module[-1:] == ("__main__",) else module
    called = ["python", "-m", ".".join(module)] if module[:1] == ("experiments",) else [program]
    return shlex.join([*called, *arguments]).replace("\n", "'$'\\n''")  # one line, for the same shell words


def chosen_recipes(chosen: argparse.Namespace) -> list[Recipe]:
    """The recipes that the command line names, with the controls if it asks for them.

    Raises:
        SettingError: an unknown recipe, or flags that do not go together.
    """
    if (chosen.encoder is None) == (chosen.recipes is None):
        raise SettingError("give --encoder (and --methods) or --recipes, one of the two")
    if chosen.recipes is not None and chosen.controls:
        raise SettingError("--controls finds recipes by --encoder and --methods; list the controls' --recipes yourself")
    folders = Benchmark(chosen.task_def).places("recipes")
    if chosen.recipes is not None:
        files = [find_recipe_file(name, "--recipes", folders) for name in names_of("recipes", chosen.recipes)]
        return [load_recipe(file, folders) for file in files]
    methods = names_of("methods", chosen.methods)
    for method in methods:
        check_method(method, "--methods")
    if chosen.controls:
        methods = list(dict.fromkeys([*(c for m in methods if (c := control_of(m)) is not None), *methods]))
    return find_recipes(chosen.encoder, methods, chosen.recipe_base, folders)


def _tasks(chosen: argparse.Namespace, recipe: Recipe) -> list[str]:
    if chosen.tasks is not None:
        return names_of("tasks", chosen.tasks)
    folder = Benchmark(chosen.task_def).places("recipes")[0]
    if chosen.recipes is None and recipe.path.parent != folder:  # the recipe of another benchmark
        defined = load_task_defs(chosen.task_def)
        if not any(task in defined or task in defined.refused for task in recipe.tasks):
            return list(defined)
    return in_table_order(recipe.tasks)


def names_of(flag: str, text: str) -> list[str]:
    """The names that a flag lists, each once.

    Raises:
        SettingError: there is none.
    """
    names = list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
    if not names:
        raise SettingError(f"--{flag} {shown(text)} names none; give some, with commas between them")
    return names


def make_job(config: RunConfig, folder: Path, trials: int = 1) -> Job:
    """The job of a run, with its steps and cost.

    Raises:
        SettingError: a file of its task is missing, the task has no use for a setting, the training set has fewer rows,
            in all or of a class, than the run asks for, or its ratio leaves no batch of a task.
    """
    each = config.by_task()
    check_use(config)
    used, costs = zip(*map(_examples, each), strict=True)
    check_mixing(config, used)
    steps = config.epochs * steps_per_epoch(config, used)
    return Job(config, folder, steps, cost=config.epochs * sum(costs), trials=trials)


def _examples(config: RunConfig) -> tuple[int, float]:
    """Examples of an epoch of a run with one task, and their bytes.

    Raises:
        SettingError: as :func:`make_job`.
    """
    tsv = config.data_dir / f"{config.task}_train.tsv"
    if not tsv.is_file():
        raise SettingError(f"{missing_file(config, tsv.stem)}; or leave {config.task} out of --tasks")
    task_def = find_task_def(config)
    for dataset in dev_sets(config, task_def):
        tsv_of(config, dataset)
    rows = _count_rows(tsv)
    left = rows - round(rows * (config.holdout or 0.0))
    if config.train_size is not None and config.train_size > left:
        less = f" beside the {rows - left} held out" if left < rows else ""
        raise SettingError(
            f"train_size is {config.train_size}, but {tsv} has {left} rows{less}; legal: at most that many"
        )
    if config.train_balanced and config.train_size is not None:
        _check_balance(tsv, task_def, config.train_size, config.holdout)
    used = config.train_size or math.ceil(left * (config.train_fraction or 1.0))
    return used, tsv.stat().st_size * used / max(rows, 1)


@functools.cache
def _check_balance(tsv: Path, task_def: TaskDef, size: int, holdout: float | None) -> None:
    check_classes(task_def)
    labels = read_canonical(tsv, task_def).labels
    with naming_task(task_def):
        if holdout is not None:
            labels = np.delete(labels, held_out_of(labels, task_def, holdout))
        training_subset(len(labels), 0, size=size, balance=labels)  # any seed finds the same numbers of rows


@functools.cache
def _count_rows(tsv: Path) -> int:
    with tsv.open("rb") as file:
        return max((number for number, line in enumerate(file, start=1) if line.strip(b"\r\n")), default=0)
