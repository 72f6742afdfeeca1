"""Recipe files: the content of one, joined with the recipe that it is ``like``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError, shown
from data_utils.names import did_you_mean
from data_utils.yaml_file import read_yaml
from experiments.benchmark import DEFAULT
from experiments.study.fields import Fields
from experiments.study.settings import check_key, check_method, check_settings, check_tasks, check_value
from module.methods import METHODS

RECIPE_FOLDERS = DEFAULT.places("recipes")
"""Folders in which a study of the default benchmark looks for recipes by name."""

_TEXTS = ("encoder", "method", "source")
_MAPPINGS = ("settings", "tasks", "grid")
_KEYS = ("like", *_TEXTS, *_MAPPINGS, "chosen_from_grid", "tried", "encoder_parameters")


def read_recipe(path: Path, folders: Sequence[Path] = RECIPE_FOLDERS, above: tuple[Path, ...] = ()) -> Fields:
    """Read a recipe file, joined with the recipe that it is like.

    Encoder, method, source, settings, tasks and grid are the other recipe's where the file says nothing. A setting of
    the file holds for all tasks, also those for which the other recipe sets it. Settings of methods that this method
    does not contain are left behind; so is ``chosen_from_grid``, as nothing was searched for this one. A task or an
    axis of the grid is taken out with ``null``.

    Args:
        path: The file.
        folders: Where the other recipe is looked for by name, after the file's own folder.
        above: Files that are like it.

    Raises:
        SettingError: a missing or unknown key, a value of another kind, a setting that is unknown or belongs to the
            study's command line, or a ``like`` that leads nowhere.
        OSError: the file cannot be read.
    """
    own = Fields(read_yaml(path), str(path))
    _check(own)
    if "like" not in own.values:
        return own
    base = find_recipe_file(own.text("like"), f"{path}: like", (path.parent, *folders))
    if base in (*above, path):
        chain = " -> ".join(file.stem for file in (*above, path, base))
        raise SettingError(f"{path}: like goes in a circle: {chain}; one of them must stand on its own")
    return Fields(_inherited(read_recipe(base, folders, (*above, path)), own), str(path))


def find_recipe_file(name: str, where: str, folders: Sequence[Path] = RECIPE_FOLDERS) -> Path:
    """The recipe of a name, with or without ``.yml``: a file, or the first one in ``folders``.

    Args:
        name: A path, or a name.
        where: The setting that names it, for the message.
        folders: Where to look.

    Raises:
        SettingError: there is none.
    """
    candidates = [Path(name), *(place / f"{name.removesuffix('.yml')}.yml" for place in folders)]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        known = sorted({path.stem for folder in folders for path in folder.glob("*.yml")})
        meant = did_you_mean(name, known)
        raise SettingError(f"{where}: no recipe {shown(name)}{meant}; give a file, or one of {', '.join(known)}")
    return found.resolve()


def merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings in one, mappings in them likewise; ``high`` wins."""
    result = dict(low)
    for key, value in high.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _check(own: Fields) -> None:
    """Check each key of one file by itself."""
    if unknown := [key for key in own.values if key not in _KEYS]:
        raise SettingError(f"{own.where}: unknown key {', '.join(unknown)[:200]}; legal keys: {', '.join(_KEYS)}")
    settings, tasks, grid = (own.mapping(key, {}) for key in _MAPPINGS)
    if "like" in own.values:  # null takes out what the other recipe has
        tasks, grid = (Fields(_there(part.values), part.where, inner=True) for part in (tasks, grid))
    check_settings(settings.values, settings.where)
    check_tasks(tasks)
    for key in grid.values:
        values = grid.get(key, "a list of values, at least one", lambda v: isinstance(v, list) and len(v) > 0)
        check_key(str(key), grid.where, tasks=False)
        check_value(values, f"{own.where}: grid.{key}")
    if "method" in own.values:
        check_method(own.text("method"), f"{own.where}: method")


def _inherited(base: Fields, own: Fields) -> dict[str, Any]:
    content = {key: base.values[key] for key in _TEXTS if key in base.values}
    content |= {key: value for key, value in own.values.items() if key != "like"}
    method = str(content.get("method", "")).split("+")
    settings, tasks, grid = (base.mapping(key, {}).values for key in _MAPPINGS)
    above = own.mapping("settings", {}).values
    content["settings"] = merged(_of_methods(settings, method), above)
    below = {task: without(_of_methods(values, method), above) for task, values in tasks.items()}
    for key, inherited in (("tasks", below), ("grid", _of_methods(grid, method))):
        change = own.mapping(key, {})
        for name, value in change.values.items():
            if value is None and name not in inherited:
                raise SettingError(f"{change.name_of(name)} is null, but {base.where} has no {name} to take out")
        content[key] = _there(merged(inherited, change.values))
    return content


def _there(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _of_methods(settings: Mapping[str, Any], method: Sequence[str]) -> dict[str, Any]:
    """Settings of every run and of these methods, without those of other methods."""
    groups = {key: key.partition(".")[0] for key in settings}
    return {key: settings[key] for key, group in groups.items() if group not in METHODS or group in method}


def without(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping less the keys of another one, mappings in them likewise; one with nothing left is dropped."""
    result = {}
    for key, value in low.items():
        above = high.get(key)
        if isinstance(value, dict) and isinstance(above, dict):
            if rest := without(value, above):
                result[key] = rest
        elif key not in high:
            result[key] = value
    return result
