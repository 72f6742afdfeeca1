"""Rows of values as CSV that a spreadsheet reads as they are."""

import csv
import io
from collections.abc import Sequence

_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four: their full-width forms


def csv_text(rows: Sequence[Sequence[object]]) -> str:
    """Rows of values as CSV; None is empty, and a text that a spreadsheet would take for a formula is kept one."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([_inert(value) for value in row] for row in rows)
    return buffer.getvalue()


def _inert(value: object) -> object:
    """A text that begins like a formula with ``'`` before it, as spreadsheets write it; anything else as it is."""
    if not isinstance(value, str):
        return value
    # Readers of CSV take \r for the end of a line; half a character cannot be written.
    value = value.replace("\r", " ").encode(errors="replace").decode()
    if not (value.startswith(("\t", "\n")) or value.lstrip().startswith(_FORMULA)):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
