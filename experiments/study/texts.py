"""Numbers, CSV and text files in the form of every table, picture and report."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_utils.atomic import write_text_atomic

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


def number_text(value: float, signed: bool = False) -> str:
    """Two decimals, with the sign of a difference; ``NaN``. What rounds to zero has no minus."""
    return "NaN" if math.isnan(value) else f"{value:{'+' if signed else ''}z.2f}"


def write_texts(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write files, name -> content, into a folder, made if missing; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    return [folder / name for name in texts]
