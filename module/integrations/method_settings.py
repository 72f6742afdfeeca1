"""Settings of methods given in Python, checked as those of a command line are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_type_hints

from ..checks import short_repr
from ..method import OptimizerSettings
from ..methods import METHODS
from ..seeds import stream_seed


def method_settings(names: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Build the settings of methods.

    Args:
        names: Of the methods.
        given: ``{"pats.noise_scale": 5e-3}``, ``{"pats": {"noise_scale": 5e-3}}`` or ``{"pats": PATSRule(...)}``.

    Returns:
        Name of a method -> an instance of its ``Settings``; those that are not given are left out.

    Raises:
        ValueError: A setting is unknown, of another method, given twice or out of its range.
    """
    names = tuple(names)
    values: dict[str, Any] = {}
    for key, value in given.items():
        name, _, field = str(key).partition(".")
        if name not in names:
            raise ValueError(_unknown(str(key), [f"{n}.{f}" for n in names for f in _fields(n)]))
        if field:
            value = {field: value}
        if not isinstance(value, Mapping):
            if not isinstance(value, METHODS[name].Settings):
                wanted = METHODS[name].Settings.__name__
                raise ValueError(f"{name} is {short_repr(value)}: a mapping of its settings, or {wanted}, is needed")
            values[name] = value
            continue
        own = values.setdefault(name, {})
        for setting, number in value.items():
            if not isinstance(own, dict) or setting in own:
                raise ValueError(f"{name}.{setting} is given twice: give it once")
            own[setting] = number
    return {name: _built(name, own) if isinstance(own, dict) else own for name, own in values.items()}


def _built(name: str, values: Mapping[str, Any]) -> Any:
    """An instance of a method's settings."""
    legal, kind = _fields(name), METHODS[name].Settings
    hints = get_type_hints(kind)
    for setting, value in values.items():
        if setting not in legal:
            raise ValueError(_unknown(f"{name}.{setting}", [f"{name}.{field}" for field in legal]))
        if hints[setting] in (bool, int) and type(value) is not hints[setting]:
            wanted = "True or False" if hints[setting] is bool else "a whole number"
            raise ValueError(f"{name}.{setting} is {short_repr(value)}: {wanted} is needed")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _fields(name: str) -> list[str]:
    kind = METHODS[name].Settings
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def _unknown(key: str, legal: list[str]) -> str:
    near = difflib.get_close_matches(key, legal, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return f"{key} is no setting of this method{meant}: there are {', '.join(legal) or 'none'}"


def searched_settings(settings: Mapping[str, Any], names: Iterable[str], found: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of methods with some replaced, as a search proposes them.

    Args:
        settings: Of :func:`method_settings`.
        names: Of the methods.
        found: ``{"pats.noise_scale": 5e-3}``.

    Raises:
        ValueError: As there.
    """
    replaced = dict(settings)
    method_settings(names, found)
    for key, value in found.items():
        name, _, field = key.partition(".")
        try:
            replaced[name] = replace(replaced.get(name, METHODS[name].Settings()), **{field: value})
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return replaced


def optimizer_settings(args: Any, optimizer: Any, adamax_rule: Any) -> OptimizerSettings:
    """Settings of the optimizer of a run.

    Args:
        args: Of Trainer.
        optimizer: ``adamw`` or ``adamax``.
        adamax_rule: Of the latter.
    """
    own_eps = optimizer == "adamax" and args.adam_epsilon == type(args).adam_epsilon
    return OptimizerSettings(
        optimizer=optimizer,
        learning_rate=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=None if own_eps else args.adam_epsilon,
        weight_decay=args.weight_decay,
        adamax_rule=adamax_rule,
        noise_seed=stream_seed(args.seed, "noise"),
    )
