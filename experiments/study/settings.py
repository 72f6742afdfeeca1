"""The settings that recipes and ``--set`` may give: their names, kinds of values, and owners."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml

from data_utils.errors import SettingError, shown
from data_utils.names import check_name, did_you_mean
from data_utils.yaml_file import yaml_value
from experiments.study.fields import Fields
from module.methods import METHODS, parse_method
from mt_dnn.config import RunConfig
from mt_dnn.other_names import meant

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
# Nothing else is a setting: not config, which would bring another file's settings along unchecked.
_SETTINGS = tuple(field.name for field in dataclasses.fields(RunConfig) if field.name != "method_settings")
_FREE = tuple(name for name in _SETTINGS if name not in _OWNED)
_DEEPEST = 3  # lists and mappings within each other
_LONGEST_TEXT = 10_000  # of YAML: its reader takes time that grows with the square of open brackets
_LONGEST = 1000  # characters of a text, entries of a list or mapping


def check_settings(settings: Mapping[Any, Any], where: str) -> None:
    """Check the settings of a recipe: each a setting of a run, or a method with a mapping of its own.

    Args:
        settings: Setting -> value, as a file gives them.
        where: File and place in it, for messages.

    Raises:
        SettingError: an unknown setting, one that the study sets, or a value of a kind that no setting has.
    """
    for key, value in settings.items():
        if key not in METHODS:
            _check_name(key, where)
        elif not isinstance(value, Mapping):
            raise SettingError(f"{where}: {key} is {shown(value)}; legal: a mapping of the method's settings")
        check_value(value, f"{where}: {key}")


def check_tasks(tasks: Fields) -> None:
    """Check the tasks of a recipe, each a name with a mapping of settings.

    Raises:
        SettingError: as :func:`check_settings`, or no name of a task.
    """
    for task in tasks.values:
        if not isinstance(task, str):
            raise SettingError(f"{tasks.where}: {shown(task)} is no name of a task; quote it to make it one")
        own = tasks.mapping(check_name(f"{tasks.where}: task", task))
        check_settings(own.values, own.where)


def check_key(key: str, where: str, tasks: bool = True) -> None:
    """Check a dotted setting: ``epochs``, ``pats.noise_scale`` or, where ``tasks``, ``cola.epochs``.

    Raises:
        SettingError: an unknown setting, or one that the study sets.
    """
    group, dot, rest = key.partition(".")
    if not dot:
        _check_name(key, where)
    elif group in METHODS:
        check_method(group, where)  # a package's may not be whole
        own = [field.name for field in dataclasses.fields(METHODS[group].Settings)]
        if rest not in own:
            raise SettingError(
                f"{where}: {group} has no setting {shown(rest)}{did_you_mean(rest, own)}; it has "
                f"{', '.join(own) or 'none'}"
            )
    elif tasks and rest.partition(".")[0] in (*_SETTINGS, *METHODS):
        check_key(rest, f"{where}, task {group[:100]}", tasks=False)
    else:
        of_task = f", and {shown(rest)} no setting of a task{did_you_mean(rest, _FREE)}" if tasks else ""
        raise SettingError(f"{where} {shown(key)}: {shown(group)} is no method{did_you_mean(group, METHODS)}{of_task}")


def check_value(value: object, where: str, depth: int = 0) -> None:
    """Check that a value is of a kind that settings have.

    Raises:
        SettingError: it is not, or it is too large to be one.
    """
    if isinstance(value, Mapping | list | tuple):
        if depth == _DEEPEST or len(value) > _LONGEST:
            raise SettingError(f"{where} is {shown(value)}, too long or too deeply nested for a setting")
        for key in value if isinstance(value, Mapping) else ():
            if not isinstance(key, str):
                raise SettingError(f"{where}: {shown(key)} is no name of a setting")
        for part in value.values() if isinstance(value, Mapping) else value:
            check_value(part, where, depth + 1)
    elif isinstance(value, str):
        if len(value) > _LONGEST:
            raise SettingError(f"{where} is {shown(value)}, which is too long for a setting")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise SettingError(f"{where} is an integer that needs more than 64 bits; give a smaller one")
    elif value is not None and not isinstance(value, int | float):
        raise SettingError(f"{where} is {shown(value)}, a {type(value).__name__}; quote it to make it a text")


def check_method(spec: str, where: str) -> None:
    """Check the name of a method or a composition.

    Raises:
        SettingError: it is unknown or not installed, or its parts do not go together.
    """
    for name in spec.split("+"):
        if name not in METHODS:
            raise SettingError(
                f"{where}: unknown method {shown(name)}{did_you_mean(name, METHODS)}; there are {', '.join(METHODS)} "
                "and those of packages that are installed here"
            )
    try:
        parse_method(spec)
    except ValueError as error:
        raise SettingError(f"{where}: {error}") from None


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs; values are YAML (``1e-4`` is a number, ``null`` is none).

    Returns:
        Dotted setting -> value.

    Raises:
        SettingError: no ``=``, an unreadable value, an unknown setting, or one that has a flag of its own.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SettingError(f"--set {shown(pair)} is not key=value, such as epochs=3 or pats.noise_scale=8e-3")
        check_key(key, "--set")
        overrides[key] = _value(key, text)
    return overrides


def _value(key: str, text: str) -> Any:
    if len(text) > _LONGEST_TEXT:
        raise SettingError(f"--set {key}: cannot read the value {shown(text)}, of more than {_LONGEST_TEXT} characters")
    try:
        # An alias in so short a text is of no use but to blow it up.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise SettingError(f"--set {key}: aliases (*) are not read")
        value = yaml_value(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that there is not, a number too long
        if isinstance(error, SettingError):
            raise SettingError(str(error).replace("line 1", f"--set {key}", 1)) from None
        raise SettingError(f"--set {key}: cannot read the value {shown(text)}") from None
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)  # YAML 1.1 reads 1e-4, with no dot, as a text
    check_value(value, f"--set {key}")
    return value


def _check_name(key: object, where: str) -> None:
    if key in _OWNED:
        raise SettingError(f"{where}: {key} is not set here; the study sets it ({_OWNED[key]})")
    if key not in _SETTINGS:
        near = meant(key, _FREE) if isinstance(key, str) else ""
        raise SettingError(f"{where}: unknown setting {shown(key)}{near}; python train.py --help lists them")
