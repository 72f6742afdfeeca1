"""Command line and YAML to :class:`RunConfig`: one parser for ``train.py``, recipes and overrides."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jsonargparse

from data_utils.command_line import plain
from data_utils.errors import SettingError
from module.methods import METHODS
from mt_dnn.config import RunConfig

_DESCRIPTION = """\
Fine-tune a pretrained encoder on one task with one method and one seed.

  python train.py --train_datasets cola --method pats --pats.noise_scale 5e-3 --learning_rate 1e-4
  python train.py --config run.yml --seed 3        values on the command line win over the file's
  python train.py --config run.yml --print_config  show the whole configuration and stop
  torchrun --nproc_per_node 4 train.py --train_datasets mnli --method pats
                                                   the same run divided among 4 GPUs (docs/cluster.md)

A finished run is not run again; a broken-off one goes on where its last checkpoint stands.
Exit status: 0 done, 1 the run failed or another of its processes ended, 2 a setting or file is wrong, 75 stopped by a
signal (start it again)."""


class _HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines; shows defaults without the Python types, which the text of a setting tells."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return str(super()._get_help_string(action)).replace("type: %(type)s, ", "").replace("(type: %(type)s)", "")


@cache
def build_parser(methods: tuple[str, ...] = tuple(METHODS)) -> jsonargparse.ArgumentParser:
    """Parser of every run setting, one group per method.

    Args:
        methods: names of the methods whose settings it knows; each one more takes time at every parse.

    Returns:
        A parser that raises instead of exiting, so that its message can be shown in one line.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog="train.py",
        usage="python train.py [--config FILE] [--SETTING VALUE ...]",
        description=_DESCRIPTION,
        exit_on_error=False,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with settings; the command line wins over it.")
    parser.add_class_arguments(RunConfig, None, skip={"method_settings"})
    for name in methods:
        if dataclasses.fields(METHODS[name].Settings):
            parser.add_class_arguments(METHODS[name].Settings, name, help=f"Settings of --method {name}")
    return parser


def config_from_arguments(arguments: Sequence[str]) -> RunConfig:
    """The configuration that a command line asks for.

    Args:
        arguments: Command line without the program's name.

    Raises:
        SettingError: an unknown flag, a wrong type or a value out of range.
    """
    parser = build_parser()
    try:
        return _to_config(parser, parser.parse_args(list(arguments)))
    except jsonargparse.ArgumentError as error:
        raise SettingError(f"{plain(_one_line(error), parser)}; see python train.py --help") from None


def config_from_mapping(values: Mapping[str, Any]) -> RunConfig:
    """The configuration that a mapping such as a recipe gives; what it leaves out keeps its default.

    Args:
        values: Setting -> value; a method's settings as a mapping under its name.

    Raises:
        SettingError: an unknown setting, a wrong type or a value out of range.
    """
    named = {*str(values.get("method", "")).split("+"), *values}
    parser = build_parser(tuple(name for name in METHODS if name in named))
    try:
        return _to_config(parser, parser.parse_object(dict(values)))
    except jsonargparse.ArgumentError as error:
        raise SettingError(_one_line(error)) from None


def _to_config(parser: jsonargparse.ArgumentParser, namespace: jsonargparse.Namespace) -> RunConfig:
    defaults = parser.get_defaults()
    values = {f.name: namespace[f.name] for f in dataclasses.fields(RunConfig) if f.name != "method_settings"}
    chosen = values["method"].split("+")
    settings = {}
    for name, method in METHODS.items():
        given = namespace.get(name)
        # Settings left at their defaults are no sign that the method is wanted.
        if given is None or (name not in chosen and given == defaults.get(name)):
            continue
        try:
            settings[name] = method.Settings(**vars(given))
        except ValueError as error:
            raise SettingError(f"{name}: {error}") from None
    return RunConfig(**values, method_settings=settings)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).replace("<class '", "").replace("'>", "")
