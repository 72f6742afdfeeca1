"""Command line and YAML to :class:`RunConfig`: one parser for ``train.py``, recipes and overrides."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from data_utils.command_line import plain
from data_utils.errors import SettingError, shown
from data_utils.yaml_file import read_yaml
from module.methods import METHODS, parse_method
from mt_dnn.config import RunConfig, legal_values
from mt_dnn.other_names import OTHER_NAMES, meant
from mt_dnn.setting_types import described, hints_of

_DESCRIPTION = """\
Fine-tune a pretrained encoder with one method and one seed, on one task or on several together.

  python train.py --train_datasets cola --method pats --pats.noise_scale 5e-3 --learning_rate 1e-4
  python train.py --train_datasets mnli,qqp,rte    one encoder, a head for each task (docs/multitask.md)
  python train.py --config run.yml --seed 3        values on the command line win over the file's
  python train.py --config run.yml --print_config  show the whole configuration and stop
  torchrun --nproc_per_node 4 train.py --train_datasets mnli --method pats
                                                   the same run divided among 4 GPUs (docs/data_parallel.md)

A finished run is not run again; a broken-off one goes on where its last checkpoint stands.
Exit status: 0 done, 1 the run failed or another of its processes ended, 2 a setting or file is wrong, 75 stopped by a
signal (start it again), 130 stopped at once by a second Ctrl-C (the last checkpoint stands)."""
_SUB_CONFIG = "CONFIG"  # jsonargparse's name for the file of a group
_RESERVED = frozenset({"config", "print_config", "help", *(f.name for f in dataclasses.fields(RunConfig))})
_METHOD = RunConfig.__dataclass_fields__["method"].default
_SETTINGS = tuple(f.name for f in dataclasses.fields(RunConfig) if f.name != "method_settings")


class _HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that keeps the description's lines and shows defaults without Python types."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return str(super()._get_help_string(action)).replace("type: %(type)s, ", "").replace("(type: %(type)s)", "")

    def add_argument(self, action: argparse.Action) -> None:
        if action.metavar != _SUB_CONFIG:
            super().add_argument(action)


@cache
def build_parser(methods: tuple[str, ...] = METHODS.own) -> jsonargparse.ArgumentParser:
    """Build the parser of every run setting, with a group per method.

    Args:
        methods: names of the methods whose settings it knows; each one more takes time at every parse.

    Returns:
        A parser that raises instead of exiting, so that its message can be shown in one line.

    Raises:
        SettingError: a method cannot be imported.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    others = ", ".join(name for name in METHODS.foreign if name not in methods)
    parser = jsonargparse.ArgumentParser(
        prog="train.py",
        usage="python train.py [--config FILE] [--SETTING VALUE ...]",
        description=_DESCRIPTION,
        epilog=f"Methods of installed packages: {others}; their settings: --method NAME --help" if others else None,
        exit_on_error=False,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings; the command line wins over it.")
    parser.add_argument("--print_config", action="store_true", help="Print the whole configuration and stop.")
    parser.add_class_arguments(RunConfig, None, skip={"method_settings"})
    for name in methods:
        settings = _settings_of(name)
        if dataclasses.fields(settings):
            parser.add_class_arguments(settings, name, help=f"Settings of --method {name}")
            del parser._option_string_actions[f"--{name}"]  # would load a file, which only --config does
    return parser


def config_from_arguments(arguments: Sequence[str], **defaults: Any) -> RunConfig:
    """Make a configuration of a command line.

    Args:
        arguments: Command line without the program's name.
        defaults: Settings where neither it nor a file says otherwise; without them :class:`RunConfig`'s.

    Raises:
        SettingError: an unknown flag, a wrong type or a value out of range, also in the file of ``--config``.
        SystemExit: after ``--help`` or ``--print_config``.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", action="append", default=[])
    first.add_argument("--print_config", action="store_true")
    first.add_argument("--method")
    try:
        known, rest = first.parse_known_args(list(arguments))
        if {"-h", "--help"} & set(rest):
            given = {} if known.method is None else {"method": known.method}
            parser = build_parser(tuple(dict.fromkeys((*METHODS.own, *_named(given, rest)))))
            parser.set_defaults(defaults)
            parser.parse_args(["--help"])
        values = dict(defaults)
        for file in known.config:
            values |= _read_settings(file)
        if known.method is not None:
            values["method"] = known.method
        names = _named(values, rest)
        below = _parsed(values, names)
        _refuse_nested(rest)
        config = _to_config(names, build_parser(names).parse_args(rest, namespace=below))
    except (jsonargparse.ArgumentError, argparse.ArgumentError) as error:
        told = plain(_message(error), build_parser(), OTHER_NAMES)
        raise SettingError(f"{told}; see python train.py --help") from None
    except OverflowError:
        raise SettingError(f"{shown(max(arguments, key=len))} is too large for a number") from None
    if known.print_config:
        print(_as_yaml(config), end="")
        raise SystemExit(0)
    return config


def config_from_mapping(values: Mapping[str, Any]) -> RunConfig:
    """Make a configuration of a mapping such as a recipe; other settings keep their defaults.

    Args:
        values: Setting -> value; a method's settings as a mapping under its name.

    Raises:
        SettingError: an unknown setting, a wrong type or a value out of range.
    """
    names = _named(values, ())
    return _to_config(names, _parsed(values, names))


def _named(values: Mapping[str, Any], arguments: Iterable[str]) -> tuple[str, ...]:
    """Return the methods that are chosen or have settings; others are not imported."""
    method = values.get("method")
    named = {*(method.split("+") if isinstance(method, str) else ()), *(key for key in values if key not in _SETTINGS)}
    named |= {argument[2:].partition(".")[0] for argument in arguments if argument.startswith("--") and "." in argument}
    return tuple(name for name in METHODS if name in named)


def _refuse_nested(arguments: Sequence[str]) -> None:
    """Refuse ``--epochs.x``, which jsonargparse takes for a part of ``epochs``."""
    for argument in arguments:
        group, dot, _ = argument.partition("=")[0].partition(".")
        if argument.startswith("--") and dot and group[2:] not in METHODS:
            raise SettingError(f"unknown setting {argument[:120]}; see python train.py --help")


def _settings_of(name: str) -> type:
    try:
        settings = METHODS[name].Settings
    except ValueError as error:
        raise SettingError(str(error)) from None
    if name in _RESERVED:
        raise SettingError(f"method {name!r} of an installed package has the name of a setting: rename it")
    return settings


def _read_settings(path: str) -> dict[str, Any]:
    """Read and check the settings in a file of ``--config``."""
    if not Path(path).exists():
        raise SettingError(f"--config: {path} does not exist; name a YAML file with settings")
    values = read_yaml(path)
    try:
        _parsed(values, _named(values, ()))
    except SettingError as error:
        raise SettingError(f"--config: {path}: {error}") from None
    return values


def _parsed(values: Mapping[str, Any], names: tuple[str, ...]) -> jsonargparse.Namespace:
    """Parse what a mapping gives, after a check of its keys: jsonargparse would load files that some of them name."""
    if isinstance(method := values.get("method"), str):
        try:
            parse_method(method)
        except ValueError as error:  # said before its settings are called unknown
            raise SettingError(str(error)) from None
    _check_keys(values, (*_SETTINGS, *METHODS), "")
    for name in names:
        group = values.get(name, {})
        if not isinstance(group, Mapping):
            raise SettingError(f"{name} is {shown(group)}; legal: a mapping with settings of the method {name}")
        _check_keys(group, [f.name for f in dataclasses.fields(_settings_of(name))], f"{name}.")
    try:
        # Without defaults, which a configuration has anyway: jsonargparse takes ten times as long with them. And with a
        # parser of each method, because there are many sets of methods.
        own = {name: values[name] for name in _SETTINGS if name in values}
        parsed: jsonargparse.Namespace = build_parser(()).parse_object(own, defaults=False)
        for name in names:
            parsed.update(build_parser((name,)).parse_object({name: values.get(name, {})}, defaults=False))
    except jsonargparse.ArgumentError as error:
        raise SettingError(_message(error)) from None
    return parsed


def _check_keys(values: Mapping[str, Any], legal: Sequence[str], group: str) -> None:
    for key, value in values.items():
        if key not in legal:
            method, dot, name = str(key).partition(".")
            told = meant(str(key), legal, group)
            if dot and method in METHODS:
                told = f" (write {method}: {{{name}: ...}})"
            raise SettingError(f"unknown setting {group}{' '.join(str(key).split())[:120]}{told}")
        is_method = not group and key in METHODS and key not in _SETTINGS
        if not is_method and not _is_plain(value):
            raise SettingError(f"{group}{key} is {shown(value)}; legal: {_legal(group + key)}")


def _is_plain(value: object) -> bool:
    """Whether a value is a number, a text or a short list of them; a float can hold its integers."""
    if isinstance(value, list | tuple):
        return len(value) <= 100 and not any(isinstance(v, list | tuple) for v in value) and all(map(_is_plain, value))
    return not isinstance(value, Mapping) and not (isinstance(value, int) and abs(value) >= 10**300)


def _to_config(names: Sequence[str], namespace: jsonargparse.Namespace) -> RunConfig:
    values = {name: namespace[name] for name in _SETTINGS if name in namespace}
    chosen = str(values.get("method", _METHOD)).split("+")
    settings = {}
    for name in names:
        kind = METHODS[name].Settings
        given = vars(namespace[name]) if name in namespace else {}
        # Settings left at their defaults are no sign that the method is wanted.
        if name not in chosen and all(given.get(f.name, f.default) == f.default for f in dataclasses.fields(kind)):
            continue
        try:
            settings[name] = kind(**given)
        except ValueError as error:
            raise SettingError(f"{name}: {error}") from None
    return RunConfig(**values, method_settings=settings)


def _message(error: Exception) -> str:
    """Return a message of jsonargparse in our words: setting, value, legal values."""
    text = " ".join(str(error).split())
    found = re.match(r'Parser key "([\w.]+)": (.*)$', text)
    if found is None or found[1].partition(".")[0] not in (*_SETTINGS, *METHODS):
        return text[:500]
    setting, said = found[1], re.sub(r".*?(?:Got|Given) value: ", "is ", found[2], count=1)
    told = said if len(said) <= 120 else f"{said[:60]}...{said[-57:]}"
    return f"{setting} {told}; legal: {_legal(setting)}" if told.startswith("is ") else f"{setting}: {told}"


def _legal(setting: str) -> str:
    """The legal values of a setting, such as ``epochs`` or ``pats.noise_scale``."""
    group, dot, name = setting.partition(".")
    if dot and group in METHODS:
        return described(hints_of(_settings_of(group)).get(name, Any))
    return legal_values(group)


def _as_yaml(config: RunConfig) -> str:
    values = json.loads(json.dumps(config.as_dict()))  # tuples become lists
    settings = values.pop("method_settings")
    return str(yaml.safe_dump({**values, **settings}, sort_keys=False))
