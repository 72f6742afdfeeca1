"""Values of a settings file: each function checks one and raises SettingError, which names file, key and value.

``where`` is the place in the file, ``key`` the setting.
"""

from enum import StrEnum
from typing import Any, TypeVar

from data_utils.errors import SettingError, shown

Member = TypeVar("Member", bound=StrEnum)


def enum_value(where: str, key: str, value: Any, kind: type[Member]) -> Member:
    """Return the member of an enumeration that a value names."""
    try:
        return kind(value)
    except ValueError:
        raise SettingError(f"{where}: {key} is {shown(value)}; legal values: {', '.join(kind)}") from None


def texts(where: str, key: str, value: Any) -> tuple[str, ...]:
    """Return the entries of a list of different texts, at least one, none empty or with a tab or line end."""
    if not isinstance(value, list) or not value:
        raise SettingError(f"{where}: {key} is {shown(value)}; it must be a list of at least one name")
    for entry in value:
        if not isinstance(entry, str):
            raise SettingError(f"{where}: {key} holds {shown(entry)}, which is no text; put it in quotes")
    for text in value:
        if not text or any(mark in text for mark in "\t\r\n"):
            raise SettingError(f"{where}: {key} holds {shown(text)}; an entry is not empty and has no tab or line end")
    if len(set(value)) != len(value):
        raise SettingError(f"{where}: {key} holds an entry twice: {', '.join(value)}")
    return tuple(value)


def whole_number(where: str, key: str, value: Any) -> int:
    """Return a value that is an integer and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingError(f"{where}: {key} is {shown(value)}; it must be a whole number")
    return value


def probability(where: str, key: str, value: Any) -> float | None:
    """Return a value in [0, 1), or None for null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise SettingError(f"{where}: {key} is {shown(value)}; it must be a number in [0, 1)")
    return float(value)
