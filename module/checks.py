"""Legal ranges of settings: stated with their types, checked when an instance is made.

Such as::

    @dataclass(frozen=True, slots=True)
    class NoiseSettings:
        noise_scale: NonNegative = 1e-5
        distribution: Literal["normal", "uniform"] = "normal"

        def __post_init__(self) -> None:
            check_ranges(self)
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class Range:
    """Legal values of a setting."""

    holds: Callable[[Any], bool]
    legal: str
    """Such as ``a number in [0, 1)``, for the message."""
    verb: str = "is"


def short_repr(value: object) -> str:
    """A value as messages show it: short, and in one line."""
    return " ".join(reprlib.repr(value).split())


def at_least(low: float, kind: str = "a number") -> Range:
    """Finite numbers from ``low`` on."""
    return Range(lambda value: low <= value < math.inf, f"{kind} of at least {low:g}")


def within(low: float, high: float) -> Range:
    """Numbers from ``low`` up to, but not including, ``high``."""
    return Range(lambda value: bool(low <= value < high), f"a number in [{low:g}, {high:g})")


def one_of(*choices: object) -> Range:
    """Some values alone; a field of type Literal needs no such range."""
    return Range(lambda value: value in choices, f"one of {', '.join(map(str, choices))}")


NonNegative = Annotated[float, at_least(0.0)]
Positive = Annotated[float, Range(lambda value: 0.0 < value < math.inf, "a number above 0")]
Share = Annotated[float, Range(lambda value: 0.0 <= value <= 1.0, "a number in [0, 1]")]
ShareBelow1 = Annotated[float, Range(lambda value: 0.0 <= value < 1.0, "a number in [0, 1)")]
ShareAbove0 = Annotated[float, Range(lambda value: 0.0 < value <= 1.0, "a number in (0, 1]")]
WholeNumber = Annotated[int, at_least(0, "a whole number")]


@dataclass(frozen=True, slots=True)
class CheckedSettings:
    """Settings whose types state their ranges, checked when an instance is made.

    Raises:
        ValueError: If a number is out of its range or a choice is unknown.
    """

    def __post_init__(self) -> None:
        check_ranges(self)


def check_ranges(settings: Any) -> None:
    """Check a dataclass whose fields are of the types above, of ``Annotated[..., Range]`` or of ``Literal``.

    Raises:
        ValueError: If a value is out of its range; None is legal where the type says so.
    """
    for name, legal, optional in _ranges(settings.__class__):
        value = getattr(settings, name)
        if not (value is None and optional):
            check(name, value, legal)


def check(name: str, value: object, legal: Range) -> None:
    """Raise ValueError unless a value is in a range."""
    try:
        holds = legal.holds(value)
    except (TypeError, RuntimeError):  # no number; a tensor of several, or on meta
        holds = False
    if not holds:
        shown = value if isinstance(value, float) else short_repr(value)
        raise ValueError(f"Invalid {name}: {shown}: {legal.legal} {legal.verb} needed")


@cache
def _ranges(settings: type) -> tuple[tuple[str, Range, bool], ...]:
    """Name, range and whether None is legal, of each field that states a range."""
    found = []
    for name, hint in get_type_hints(settings, include_extras=True).items():
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        for part in parts:
            if get_origin(part) is Annotated:
                found.append((name, part.__metadata__[0], NoneType in parts))
            elif get_origin(part) is Literal:
                found.append((name, one_of(*get_args(part)), NoneType in parts))
    return tuple(found)
