"""Ranges of settings: stated with the type, checked when an instance is made, for every method."""

from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Literal, get_args, get_type_hints

import pytest

from module.checks import CheckedSettings, NonNegative, Positive, Range, Share, ShareAbove0, ShareBelow1, at_least
from module.methods import METHODS


@dataclass(frozen=True, slots=True)
class Settings(CheckedSettings):
    non_negative: NonNegative = 0.0
    positive: Positive | None = None
    share: Share = 1.0
    below_1: ShareBelow1 = 0.0
    above_0: ShareAbove0 = 1.0
    count: Annotated[int, at_least(2, "a whole number")] = 2
    pair: Annotated[tuple[float, ...], Range(lambda pair: len(pair) == 2, "two numbers", "are")] = (1.0, 2.0)
    kind: Literal["K", "K+1"] = "K"
    free: float = 0.0


@pytest.mark.parametrize(
    ("name", "legal", "illegal", "needed"),
    [
        (
            "non_negative",
            (0, 0.0, -0.0, 1e300),
            (-1e-300, float("inf"), float("nan"), None, "1"),
            "a number of at least 0 is",
        ),
        ("positive", (None, 1e-300), (0.0, float("inf"), float("nan")), "a number above 0 is"),
        ("share", (0.0, 1), (-1e-9, 1.001, float("nan")), "a number in [0, 1] is"),
        ("below_1", (0.0, 0.999), (-1e-9, 1.0), "a number in [0, 1) is"),
        ("above_0", (1e-9, 1.0), (0.0, 1.001), "a number in (0, 1] is"),
        ("count", (2, 10**12), (1, None), "a whole number of at least 2 is"),
        ("pair", ((0.5, 2.0),), ((0.5,), None), "two numbers are"),
        ("kind", ("K", "K+1"), ("k", None, 1), "one of K, K+1 is"),
        ("free", (None, float("nan"), "anything"), (), ""),
    ],
)
def test_a_value_is_refused_with_its_name_and_range(name, legal, illegal, needed):
    for value in legal:
        assert getattr(Settings(**{name: value}), name) is value
    for value in illegal:
        with pytest.raises(ValueError, match="Invalid") as refused:
            Settings(**{name: value})
        assert str(refused.value) == f"Invalid {name}: {value!r}: {needed} needed"


def test_every_number_among_the_settings_of_a_method_has_a_range():
    for method in METHODS.own:
        kind = METHODS[method].Settings
        for name, hint in get_type_hints(kind).items():
            if {int, float} & {hint, *get_args(hint)}:
                for value in (float("-inf"), *(() if NoneType in get_args(hint) else (None,))):
                    with pytest.raises(ValueError, match=f"Invalid {name}: "):
                        kind(**{name: value})
