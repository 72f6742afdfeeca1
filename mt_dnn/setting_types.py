"""Types of settings: the check of a value, and the name of a type in messages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    NoneType: "null",
}


_read_hints = cache(get_type_hints)


def hints_of(settings: type) -> Mapping[str, Any]:
    """Return the types of a dataclass's fields by name; none if a package hides its own at run time."""
    try:
        return _read_hints(settings)
    except NameError:
        return {}


def fits(value: object, hint: Any) -> bool:
    """Whether a value has a setting's type.

    Args:
        value: Any value. An integer is a number too if a float can hold it; a truth value is neither.
        hint: A type, or Optional, Union, Literal, tuple or Mapping of types.
    """
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if kind is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if kind is tuple and parts and Ellipsis not in parts:
        return isinstance(value, tuple | list) and len(value) == len(parts) and all(map(fits, value, parts))
    if isinstance(value, bool):
        return kind in (bool, Any)
    if kind is float and isinstance(value, int):
        return abs(value) < 10**308
    unwritable = isinstance(value, str | Path) and "\0" in str(value)  # as a file's name
    return kind is Any or (isinstance(value, kind) and not unwritable)


def described(hint: Any) -> str:
    """Return the name of a type in messages: ``a number or null``, ``one of adamax, adamw``, ``2 numbers``."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(map(described, parts))
    if kind is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if kind is tuple and Ellipsis not in parts and len(set(parts)) == 1:
        return f"{len(parts)} {described(parts[0]).split()[-1]}s"
    return _NAMES.get(hint, str(getattr(hint, "__name__", hint)))
