"""The fields of a mapping from a JSON or YAML file, each checked where it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from data_utils.errors import SettingError, shown
from data_utils.names import check_name

_REQUIRED = object()
MOST_SEED = 2**63 - 1


class Fields:
    """A mapping from a file, with a checked getter for each kind of value.

    Args:
        values: What the file holds.
        where: File and place in it, for messages.
        inner: Whether that is a place in the file, not the whole.

    Raises:
        SettingError: it is no mapping; so do all methods for a value of another kind, or one that is missing.
    """

    def __init__(self, values: object, where: str, inner: bool = False) -> None:
        if not isinstance(values, Mapping):
            raise SettingError(f"{where} is {shown(values)}; it must be a mapping")
        self.values, self.where, self._inner = values, where, inner

    def get(self, key: str, legal: str, holds: Callable[[Any], bool], default: Any = _REQUIRED) -> Any:
        """A value of any kind, checked by the caller's condition.

        Args:
            key: Its name.
            legal: What is legal, for the message.
            holds: Whether a value is.
            default: Stands for a missing one.
        """
        if key not in self.values:
            if default is _REQUIRED:
                raise SettingError(f"{self.name_of(key)} is missing; legal: {legal}")
            return default
        value = self.values[key]
        if not holds(value):
            raise SettingError(f"{self.name_of(key)} is {shown(value)}; legal: {legal}")
        return value

    def name_of(self, key: str) -> str:
        """The place of a field, for messages."""
        return f"{self.where}{'.' if self._inner else ': '}{key}"

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A text that can be printed."""
        return str(self.get(key, "a text", _is_text, default))

    def name(self, key: str) -> str:
        """A text that can stand in a path."""
        try:
            return check_name(key, self.text(key))
        except SettingError as error:
            raise SettingError(f"{self.where}: {error}") from None

    def integer(self, key: str, low: int, default: Any = _REQUIRED) -> int:
        """An integer in [low, 2^63)."""
        return int(self.get(key, f"an integer >= {low}", lambda v: _is_integer(v, low), default))

    def number(self, key: str) -> float:
        """A finite number."""
        return float(self.get(key, "a number", is_number))

    def seeds(self, key: str) -> tuple[int, ...]:
        """Different seeds, at least one."""

        def holds(value: Any) -> bool:
            return isinstance(value, list) and bool(value) and all(_is_integer(v, 0) for v in value) \
                and len(set(value)) == len(value)  # fmt: skip

        return tuple(self.get(key, "a list of different seeds, integers >= 0", holds))

    def mapping(self, key: str, default: Any = _REQUIRED) -> Fields:
        """A mapping."""
        return Fields(self.get(key, "a mapping", lambda v: isinstance(v, Mapping), default), self.name_of(key), True)

    def mappings(self, key: str) -> list[Fields]:
        """A list of mappings."""
        values = self.get(key, "a list of mappings", lambda v: isinstance(v, list))
        return [Fields(value, f"{self.name_of(key)}[{i}]", inner=True) for i, value in enumerate(values)]


def is_number(value: object) -> bool:
    """Whether a value is a finite number that fits a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_share(value: object) -> bool:
    """Whether a value is a number in (0, 1)."""
    return is_number(value) and 0.0 < value < 1.0  # type: ignore[operator]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" or c == "\0" for c in value)


def _is_integer(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= MOST_SEED
