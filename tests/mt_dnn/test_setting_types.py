from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from mt_dnn.setting_types import described, fits


@pytest.mark.parametrize(
    ("value", "hint", "right"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        ("1", int, False),
        (1, float, True),
        (1e-4, float, True),
        (float("nan"), float, True),
        (10**400, float, False),
        (True, float, False),
        (True, bool, True),
        (1, bool, False),
        (None, int | None, True),
        (None, int, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (["a"], Literal["a"], False),
        (1, Literal[True], False),
        ((0.9, 1), tuple[float, float], True),
        ([0.9], tuple[float, float], False),
        ((0.9, "a"), tuple[float, float], False),
        (("a", "b", "c"), tuple[str, ...], True),
        (Path("x"), Path, True),
        ("x", Path, False),
        (Path("a\0b"), Path, False),
        ("a\0b", str, False),
        ({}, Mapping[str, Any], True),
        ([], Mapping[str, Any], False),
        ({}, Any, True),
    ],
)
def test_whether_a_value_has_a_type(value: object, hint: Any, right: bool) -> None:
    assert fits(value, hint) == right


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "an integer"),
        (float | None, "a number or null"),
        (bool, "true or false"),
        (Literal["a", "b"] | None, "one of a, b or null"),
        (tuple[float, float], "2 numbers"),
        (tuple[str, ...], "tuple"),
        (Path, "a path"),
    ],
)
def test_what_a_type_is_called(hint: Any, text: str) -> None:
    assert described(hint) == text
