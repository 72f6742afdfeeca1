"""Recipes: one YAML per (encoder, method) with its settings per task, turned into run configurations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError, shown
from data_utils.names import check_name, slug
from data_utils.task_def import load_task_defs
from experiments.benchmark import DEFAULT
from experiments.study.encoder_size import known_encoders, nearest_encoder
from experiments.study.recipe_file import RECIPE_FOLDERS, merged, read_recipe
from experiments.study.settings import check_method
from module.methods import control_of
from mt_dnn.config import RunConfig
from mt_dnn.config_parser import config_from_mapping
from mt_dnn.run_reference import encoder_name, pretrained_of


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of one method on one encoder."""

    name: str
    """Label of the recipe: its file's name without ``.yml``."""
    path: Path
    encoder: str
    """Hub name, local folder or packaged encoder."""
    method: str
    settings: Mapping[str, Any]
    """RunConfig fields that hold for every task; a method's own settings as a mapping under its name."""
    tasks: Mapping[str, Mapping[str, Any]]
    """Task -> RunConfig fields that differ for it."""
    grid: Mapping[str, Sequence[Any]]
    """Dotted setting -> values to search, for a hyper-parameter search; a plain study does not read it."""
    chosen_from_grid: bool
    """Whether the settings are the best ones of the grid, on the set that is scored."""
    tried: int | None
    """Points of the grid that were tried to choose the settings; None: all of them."""
    source: str
    """The origin of the numbers."""
    borrowed: tuple[str, ...] = ()
    """Sentences that name the other method or encoder whose recipe was taken."""

    @property
    def trials(self) -> int:
        """Settings that were tried to find these: of the whole grid, of a part, or 1 where nothing was searched."""
        if not self.chosen_from_grid:
            return 1
        return self.tried or math.prod(map(len, self.grid.values()))


def load_recipe(path: Path, folders: Sequence[Path] = RECIPE_FOLDERS) -> Recipe:
    """Read a recipe file and check its shape; the values are checked when a run is made of them.

    Args:
        path: The file.
        folders: Where a recipe that it is like is looked for by name.

    Raises:
        SettingError: a missing or unknown key, a value of another kind, or a setting that is unknown or belongs to the
            study's command line.
        OSError: the file cannot be read.
    """
    content = read_recipe(path, folders)
    grid = content.mapping("grid", {}).values
    chosen = content.get("chosen_from_grid", "true or false", lambda v: isinstance(v, bool), False)
    if chosen and not grid:
        raise SettingError(f"{path}: chosen_from_grid is true, but there is no grid: write the values that were tried")
    tried = content.integer("tried", 1) if content.values.get("tried") is not None else None
    if tried is not None and not chosen:
        raise SettingError(f"{path}: tried is {tried}, which goes together with chosen_from_grid: true")
    return Recipe(
        name=check_name("recipe", path.stem), path=path, encoder=content.text("encoder"),
        method=content.text("method"), settings=content.mapping("settings", {}).values,
        tasks=content.mapping("tasks", {}).values, grid=grid, chosen_from_grid=chosen, tried=tried,
        source=content.text("source"),
    )  # fmt: skip


def find_recipes(
    encoder: str, methods: Sequence[str], base: str | None = None, folders: Sequence[Path] = RECIPE_FOLDERS
) -> list[Recipe]:
    """The recipes ``recipes/<encoder>_<method>.yml`` of an encoder, one per method.

    Args:
        encoder: Hub name, local folder or packaged encoder; recipes are found by its slug. A run takes those
            of the encoder that it was made from.
        methods: Method names. One without a recipe of its own takes that of its last part (``noisytune+pats``), else
            its control's, else plain fine-tuning's.
        base: Encoder (slug) whose recipes to take; an encoder that has none takes those of the known one nearest in
            size. Of another encoder's, all methods get plain fine-tuning's learning rates where a task has its own.
        folders: Where recipes are looked for; all are taken from the first that has any of the encoder.

    Raises:
        SettingError: an unknown method, or no recipe for one; the message says where one was looked for and what to do.
    """
    said: tuple[str, ...] = ()
    name, pretrained = encoder_name(encoder), pretrained_of(encoder)
    owner = slug(pretrained) if base is None else check_name("recipe_base", base)
    if pretrained != encoder and base is None:
        said = (f"{encoder} is a run: the recipes of its encoder, {pretrained}, are taken",)
    if base is None and _folder_of(owner, folders) is None:
        owner, sentence = nearest_encoder(pretrained, folders)
        said = (*said, f"{sentence}, for all methods with plain fine-tuning's learning rates")
    folder = _folder_of(owner, folders) or folders[-1]
    recipes = []
    for method in methods:
        check_method(method, "--methods")
        try:
            control = control_of(method) or "vanilla"
        except ValueError as error:
            raise SettingError(str(error)) from None
        candidates = dict.fromkeys((method, method.rpartition("+")[2], control, "vanilla"))
        found = next((name for name in candidates if (folder / f"{owner}_{name}.yml").is_file()), None)
        if found is None:
            raise SettingError(
                f"--recipe_base {owner}: there is no recipe {owner}_{method}.yml; give one of "
                f"{', '.join(known_encoders(folders))}"
            )
        recipe = load_recipe(folder / f"{owner}_{found}.yml", folders)
        if owner != slug(pretrained):
            recipe = _at_plain_rates(recipe, folder / f"{owner}_vanilla.yml", folders)
        recipe = dataclasses.replace(recipe, encoder=encoder, method=method)
        if (owner, found) != (name, method):  # nothing was searched for this one
            of_method = (f"{method} has no recipe of its own: that of {found} is taken",) if found != method else ()
            recipe = dataclasses.replace(recipe, chosen_from_grid=False, tried=None, borrowed=said + of_method)
        recipes.append(recipe)
    return recipes


def _at_plain_rates(recipe: Recipe, plain: Path, folders: Sequence[Path]) -> Recipe:
    """Give the tasks of a recipe the learning rates of plain fine-tuning, where it has others for them.

    On the encoder of the recipe a search may have chosen the others; on another one they would compare the rates and
    not the methods. A rate for all tasks, as of methods that train few weights, stays.
    """
    if not plain.is_file():
        return recipe
    rates = load_recipe(plain, folders).tasks
    tasks = {}
    for task, values in recipe.tasks.items():
        rate = {key: rates[task][key] for key in ("learning_rate",) if key in values and key in rates.get(task, {})}
        tasks[task] = {key: value for key, value in values.items() if key != "learning_rate"} | rate
    return dataclasses.replace(recipe, tasks=tasks)


def _folder_of(encoder: str, folders: Sequence[Path]) -> Path | None:
    return next((folder for folder in folders if any(folder.glob(f"{encoder}_*.yml"))), None)


def check_budgets(recipes: Sequence[Recipe]) -> None:
    """Refuse to compare methods on one encoder whose settings come from grids of different sizes.

    Raises:
        SettingError: names the methods and how many settings were tried for each.
    """
    for encoder in dict.fromkeys(recipe.encoder for recipe in recipes):
        trials = {recipe.method: recipe.trials for recipe in recipes if recipe.encoder == encoder}
        if len(set(trials.values())) > 1:
            listed = ", ".join(f"{method} {n}" for method, n in trials.items())
            raise SettingError(
                f"{encoder}: the methods' settings were chosen from grids of different sizes ({listed}), so the larger "
                "search may win by itself: give recipes with equal grids, or --unequal_grids to compare all the same"
            )


def run_configs(
    recipe: Recipe,
    tasks: Sequence[str],
    seeds: Sequence[int],
    overrides: Mapping[str, Any],
    *,
    task_def: Path = DEFAULT.task_def,
    data_dir: Path | None = None,
    output_dir: Path | None = None,
    origin: str = "--set",
) -> list[RunConfig]:
    """All runs of one recipe: task x seed.

    Args:
        recipe: The recipe.
        tasks: Names of tasks; one that the recipe does not name takes its common settings. Empty: all that it names.
        seeds: Seeds, each an integer >= 0.
        overrides: Dotted setting -> value, stronger than the recipe; a method's settings are taken only where the
            recipe's method contains it, a task's (``cola.epochs``) only for that task.
        task_def: File with the task definitions.
        data_dir: Folder with the canonical TSV files; default RunConfig's.
        output_dir: Folder of all runs; default RunConfig's.
        origin: Where the overrides are given, for messages.

    Raises:
        SettingError: a task that is not defined, or an illegal setting.
    """
    defined = load_task_defs(task_def)
    paths = {"task_def": task_def, "data_dir": data_dir, "output_dir": output_dir}
    configs = []
    for task in tasks or recipe.tasks:
        for name in task.split("+"):
            defined.find(name, str(recipe.path) if task in recipe.tasks else "--tasks")
        fixed = {key: str(path) for key, path in paths.items() if path is not None}
        fixed |= {"init_checkpoint": recipe.encoder, "method": recipe.method, "train_datasets": task}
        fixed["recipe"] = recipe.name

        def make(chosen: Mapping[str, Any], task: str = task, fixed: Mapping[str, str] = fixed) -> RunConfig:
            return config_from_mapping({**task_settings(recipe, task, chosen, defined), **fixed})

        try:
            config = make(overrides)
        except SettingError as error:
            at_fault = _at_fault(overrides, make, origin)
            raise SettingError(f"{at_fault or f'{recipe.path}, task {task}'}: {error}") from None
        configs += [dataclasses.replace(config, seed=seed) for seed in seeds]
    return configs


def _at_fault(overrides: Mapping[str, Any], make: Callable[[Mapping[str, Any]], RunConfig], origin: str) -> str:
    """The override that is at fault for an illegal run; empty where the recipe is illegal by itself."""

    def fails(chosen: Mapping[str, Any]) -> bool:
        try:
            make(chosen)
        except SettingError:
            return True
        return False

    if fails({}):
        return ""
    alone = next(({key: value} for key, value in overrides.items() if fails({key: value})), overrides)
    texts = {key: value if isinstance(value, str) else shown(value) for key, value in alone.items()}
    return " ".join([origin, *(f"{key}={text}" for key, text in texts.items())])


def task_settings(recipe: Recipe, task: str, overrides: Mapping[str, Any], tasks: Collection[str]) -> dict[str, Any]:
    """Settings of a recipe for one of its tasks; a method's own as a mapping under its name.

    Args:
        recipe: The recipe.
        task: One that it does not name takes its common settings.
        overrides: As in :func:`run_configs`.
        tasks: Names of all tasks, to tell a task's override from a method's.
    """
    own = of_task(overrides, task, tasks)
    return merged(merged(recipe.settings, recipe.tasks.get(task, {})), nested(own, recipe.method))


def of_task(overrides: Mapping[str, Any], task: str, tasks: Collection[str]) -> dict[str, Any]:
    """The dotted overrides that hold for a task; its own (``cola.epochs``) win over the general ones."""
    general, own = {}, {}
    for key, value in overrides.items():
        group, _, rest = key.partition(".")
        if group == task:
            own[rest] = value
        elif group not in tasks and "+" not in group:
            general[key] = value
    return general | own


def nested(overrides: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Dotted settings as a recipe writes them; those of methods that ``method`` does not contain are left out."""
    parts = method.split("+")
    result: dict[str, Any] = {}
    for key, value in overrides.items():
        group, dot, name = key.partition(".")
        if not dot:
            result[key] = value
        elif group in parts:
            result.setdefault(group, {})[name] = value
    return result
