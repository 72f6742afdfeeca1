"""Recipes: one YAML per (encoder, method) with its settings per task, turned into run configurations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_utils.errors import SettingError
from data_utils.names import check_name, slug
from data_utils.task_def import load_task_defs
from data_utils.yaml_file import read_yaml
from module.methods import is_control
from mt_dnn.config import GLUE_TASK_DEF, RunConfig
from mt_dnn.config_parser import config_from_mapping

RECIPES = Path(__file__).resolve().parent / "recipes"

_KEYS = ("encoder", "method", "settings", "tasks", "grid", "chosen_from_grid", "tried", "source")
# What the study itself decides for every run, and by which flag.
_OWNED = {
    "init_checkpoint": "--encoder",
    "method": "--methods",
    "train_datasets": "--tasks",
    "seed": "--seeds",
    "task_def": "--task_def",
    "data_dir": "--data_dir",
    "output_dir": "--output_dir",
    "device": "--devices",
    "threads": "--workers_per_device",
    "recipe": "--recipes",
}


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
    """How many points of the grid they were chosen from; None: from all of them."""
    source: str
    """Where the numbers come from."""

    @property
    def trials(self) -> int:
        """Settings that were tried to find these: of the whole grid, of a part, or 1 where nothing was searched."""
        if not self.chosen_from_grid:
            return 1
        return self.tried or math.prod(map(len, self.grid.values()))


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file and check its shape; the values are checked when a run is made of them.

    Raises:
        SettingError: a missing or unknown key, or a setting that belongs to the study's command line.
        OSError: the file cannot be read.
    """
    content = read_yaml(path)
    unknown = sorted(set(content) - set(_KEYS))
    if unknown:
        raise SettingError(f"{path}: unknown key {', '.join(unknown)}; legal keys: {', '.join(_KEYS)}")
    for key in ("encoder", "method", "source"):
        if not isinstance(content.get(key), str):
            raise SettingError(f"{path}: {key} must be a text; it is {content.get(key)!r}")
    for key in ("settings", "tasks", "grid"):
        if not isinstance(content.setdefault(key, {}), dict):
            raise SettingError(f"{path}: {key} must be a mapping; it is {content[key]!r}")
    if not isinstance(content.setdefault("chosen_from_grid", False), bool):
        raise SettingError(f"{path}: chosen_from_grid must be true or false; it is {content['chosen_from_grid']!r}")
    for task, settings in content["tasks"].items():
        if not isinstance(settings, dict):
            raise SettingError(f"{path}: tasks.{task} must be a mapping of settings; it is {settings!r}")
        _refuse_owned(settings, f"{path}: tasks.{task}")
    _refuse_owned(content["settings"], f"{path}: settings")
    for key, values in content["grid"].items():
        if not isinstance(values, list) or not values:
            raise SettingError(f"{path}: grid.{key} must be a list of values; it is {values!r}")
    if content["chosen_from_grid"] and not content["grid"]:
        raise SettingError(f"{path}: chosen_from_grid is true, but there is no grid: write the values that were tried")
    tried = content.setdefault("tried", None)
    if tried is not None and (not content["chosen_from_grid"] or not isinstance(tried, int) or tried < 1):
        raise SettingError(f"{path}: tried is {tried!r}; legal: an integer >= 1, together with chosen_from_grid: true")
    return Recipe(name=check_name("recipe", path.stem), path=path, **{key: content[key] for key in _KEYS})


def find_recipes(encoder: str, methods: Sequence[str], base: str | None = None) -> list[Recipe]:
    """The recipes ``recipes/<encoder>_<method>.yml`` of an encoder, one per method.

    Args:
        encoder: Hub name, local folder or packaged encoder; recipes are found by its slug.
        methods: Method names. A composition such as ``noisytune+pats`` without a recipe of its own takes its last
            part's, a control such as ``no_dropout`` plain fine-tuning's.
        base: Encoder (slug) whose recipes to take instead, for an encoder that has none.

    Raises:
        SettingError: no recipe for a method; the message says where one was looked for and what to do.
    """
    owner = slug(encoder) if base is None else check_name("recipe_base", base)
    recipes = []
    for method in methods:
        parts = method.split("+")
        try:
            plain = ["vanilla"] if is_control(method) else []
        except ValueError as error:
            raise SettingError(str(error)) from None
        candidates = [RECIPES / f"{owner}_{name}.yml" for name in dict.fromkeys((method, parts[-1], *plain))]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise SettingError(
                f"no recipe for {owner} with {method} ({candidates[0]} does not exist): write it, or take another "
                f"encoder's learning rates with --recipe_base, one of {', '.join(_encoders_with_recipes())}"
            )
        recipes.append(dataclasses.replace(load_recipe(found), encoder=encoder, method=method))
    return recipes


def resolve_recipes(names: Sequence[str]) -> list[Recipe]:
    """Load recipes by file or by name.

    Args:
        names: Paths of recipe files, or names in ``recipes/`` with or without ``.yml``.

    Raises:
        SettingError: a name that is neither.
    """
    recipes = []
    for name in names:
        path = Path(name)
        if not path.is_file():
            path = RECIPES / f"{name.removesuffix('.yml')}.yml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yml")))
            raise SettingError(f"no recipe {name!r}: give a file, or one of {known}")
        recipes.append(load_recipe(path))
    return recipes


def check_budgets(recipes: Sequence[Recipe]) -> None:
    """Refuse to compare methods on one encoder whose settings were chosen from differently many.

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


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs; values are YAML (``1e-4`` is a number, ``null`` is none).

    Returns:
        Dotted setting -> value.

    Raises:
        SettingError: no ``=``, an unreadable value, or a setting that has a flag of its own.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SettingError(f"--set {pair!r} is not key=value, such as epochs=3 or pats.noise_scale=8e-3")
        try:
            overrides[key] = _number(yaml.safe_load(text))
        except yaml.YAMLError:
            raise SettingError(f"--set {pair!r}: cannot read the value {text!r}") from None
    _refuse_owned(overrides, "--set")
    return overrides


def run_configs(
    recipe: Recipe,
    tasks: Sequence[str],
    seeds: Sequence[int],
    overrides: Mapping[str, Any],
    *,
    task_def: Path = GLUE_TASK_DEF,
    data_dir: Path | None = None,
    output_dir: Path | None = None,
) -> list[RunConfig]:
    """All runs of one recipe: task x seed.

    Args:
        recipe: The recipe.
        tasks: Names of tasks that the recipe holds; empty for all of them.
        seeds: Seeds, each an integer >= 0.
        overrides: Dotted setting -> value, stronger than the recipe; a method's settings are taken only where the
            recipe's method contains it, a task's (``cola.epochs``) only for that task.
        task_def: File with the task definitions.
        data_dir: Folder with the canonical TSV files; default RunConfig's.
        output_dir: Folder of all runs; default RunConfig's.

    Raises:
        SettingError: a task that the recipe or the task definitions do not hold, or an illegal setting.
    """
    defined = load_task_defs(task_def)
    for task in recipe.tasks:
        if task not in defined:
            raise SettingError(f"{recipe.path}: unknown task {task!r}; {task_def} defines {', '.join(defined)}")
    paths = {"task_def": task_def, "data_dir": data_dir, "output_dir": output_dir}
    configs = []
    for task in tasks or recipe.tasks:
        if task not in recipe.tasks:
            raise SettingError(
                f"{recipe.path} has no settings for task {task!r}; it has {', '.join(recipe.tasks)} "
                f"(write tasks: {{{task}: {{}}}} to take the defaults)"
            )
        values = task_settings(recipe, task, overrides, defined)
        values |= {key: str(path) for key, path in paths.items() if path is not None}
        values |= {"init_checkpoint": recipe.encoder, "method": recipe.method, "train_datasets": task}
        values["recipe"] = recipe.name
        try:
            config = config_from_mapping(values)
        except SettingError as error:
            raise SettingError(f"{recipe.path}, task {task}: {error}") from None
        configs += [dataclasses.replace(config, seed=seed) for seed in seeds]
    return configs


def task_settings(recipe: Recipe, task: str, overrides: Mapping[str, Any], tasks: Collection[str]) -> dict[str, Any]:
    """Settings of a recipe for one of its tasks; a method's own as a mapping under its name.

    Args:
        recipe: The recipe.
        task: A task that it holds.
        overrides: As in :func:`run_configs`.
        tasks: Names of all tasks, to tell a task's override from a method's.

    Raises:
        SettingError: an override of a setting that the study sets.
    """
    own = of_task(overrides, task, tasks)
    _refuse_owned(own, f"--set, task {task}")
    return merged(merged(recipe.settings, recipe.tasks[task]), nested(own, recipe.method))


def of_task(overrides: Mapping[str, Any], task: str, tasks: Collection[str]) -> dict[str, Any]:
    """Those of dotted overrides that hold for a task; its own, such as ``cola.epochs``, win over the general ones."""
    general, own = {}, {}
    for key, value in overrides.items():
        group, _, rest = key.partition(".")
        if group not in tasks:
            general[key] = value
        elif group == task:
            own[rest] = value
    return general | own


def _refuse_owned(settings: Mapping[str, Any], where: str) -> None:
    for key in settings:
        if key in _OWNED:
            raise SettingError(f"{where}: {key} is not set here; the study sets it ({_OWNED[key]})")


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-4, with no dot, as a text.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


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


def merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings in one, mappings in them likewise; ``high`` wins."""
    result = dict(low)
    for key, value in high.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _encoders_with_recipes() -> list[str]:
    return sorted(path.stem.removesuffix("_vanilla") for path in RECIPES.glob("*_vanilla.yml"))  # all have that one
