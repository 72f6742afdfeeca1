"""A number as tables, tests, pictures and the report write it."""

import math


def number_text(value: float, signed: bool = False) -> str:
    """Two decimals, with the sign of a difference; ``NaN``. What rounds to zero has no minus."""
    return "NaN" if math.isnan(value) else f"{value:{'+' if signed else ''}z.2f}"
