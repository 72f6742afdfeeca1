"""Tables with a delimiter between columns, from CSV writers or without any quoting.

A tab-separated file may be either: quotes around a text are a CSV writer's, or part of the text. `read_delimited`
takes the reading that fits and refuses a file that both fit and that says something else in each.
"""

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from data_utils.canonical_tsv import decode_lines, is_csv_quoted, without_blank_end
from data_utils.errors import SettingError, shown

QUOTINGS = ("auto", "csv", "none")
_OF_QUOTES = (
    "quotes inside a quoted field are doubled, and a file whose quotes are part of the texts is read with "
    "--quoting none"
)
_OF_LINE_ENDS = "save the file with LF or CRLF line ends"
_REMEDY = "the row is cut off or not separated as the header is"


def delimiter_of(given: str | None) -> str | None:
    """Return the character that ``--delimiter`` names; None where it is not given.

    Raises:
        SettingError: it is not one character.
    """
    delimiter = given if given is None else given.replace("\\t", "\t")
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise SettingError(f"--delimiter {given!r}: legal: one character, \\t for the tab")
    return delimiter


def read_delimited(
    data: bytes, path: Path, delimiter: str, quoting: str = "auto", header: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Read a table.

    Args:
        data: content of the file, UTF-8 with or without BOM.
        path: names the file in messages.
        delimiter: one character between columns.
        quoting: ``csv``: fields with delimiters, quotes or line ends stand in quotes; ``none``: a quote is a quote;
            ``auto``: ``csv`` for commas and the like, and for tabs the reading that fits.
        header: names of the columns; by default the first row has them.

    Returns:
        Column -> (N,) texts.

    Raises:
        SettingError: not UTF-8, no rows, a row of another length than the header, an open quote, another delimiter, or
            a tab-separated file that could be meant either way; names file, line and fix.
    """
    _check_delimiter(data, path, delimiter)
    if quoting == "auto" and (delimiter != "\t" or b'"' not in data):
        quoting = "csv"
    if quoting != "auto":
        read = _csv_rows if quoting == "csv" else _plain_rows
        return _columns(read(data, path, delimiter), path, header)
    try:
        plain = _columns(_plain_rows(data, path, delimiter), path, header)
    except SettingError:
        return _columns(_csv_rows(data, path, delimiter), path, header)
    quoted = plain
    with suppress(SettingError):
        quoted = _columns(_csv_rows(data, path, delimiter), path, header)
    return plain if quoted == plain else _choose(plain, quoted, path)


def _check_delimiter(data: bytes, path: Path, delimiter: str) -> None:
    """Refuse a file whose first row has another delimiter, such as the semicolons of many spreadsheets."""
    first = data.partition(b"\n")[0]
    found = [other for other in ",;\t|" if other.encode() in first]
    if found and delimiter.encode() not in first:
        raise SettingError(
            f"{path}: line 1 has no {shown(delimiter)}, but {shown(found[0])}",
            remedy=f"give --delimiter {shown(found[0])}",
        )


def _check_spaces(data: bytes, path: Path, delimiter: str) -> None:
    """Refuse a quoted field behind a space, which CSV takes for text; a writer doubles quotes that are text."""
    found = re.search(re.escape(delimiter.encode()) + rb' +"(?!")', data)
    if found:
        line = data.count(b"\n", 0, found.start()) + 1
        raise SettingError(
            f"{path}: line {line}: a space before a quote; take it out, so that the quotes are not taken for text",
            remedy="or read quotes as text with --quoting none",
        )


def _choose(plain: dict[str, list[str]], quoted: dict[str, list[str]], path: Path) -> dict[str, list[str]]:
    in_quotes = [text for column in plain.values() for text in column if text[:1] == '"']
    if any(map(is_csv_quoted, in_quotes)) or all(name[:1] == '"' for name in plain):
        return quoted
    raise SettingError(
        f"{path}: {len(in_quotes)} texts stand in quotes, such as {shown(in_quotes[0])}",
        remedy="give --quoting csv if a CSV writer put them there, --quoting none if they are part of the texts",
    )


def _plain_rows(data: bytes, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in without_blank_end(decode_lines(io.BytesIO(data), path)):
        yield number, line.split(delimiter)


def _csv_rows(data: bytes, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for _ in decode_lines(io.BytesIO(data), path):  # names the line that is not UTF-8
        pass
    _check_spaces(data, path, delimiter)
    csv.field_size_limit(sys.maxsize)  # a text may be longer than the 131,072 characters that it starts with
    reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="\n"), delimiter=delimiter, strict=True)
    blank = 0
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            is_line_end = "new-line" in str(error)
            reason, remedy = ("a carriage return outside quotes", _OF_LINE_ENDS) if is_line_end else (error, _OF_QUOTES)
            raise SettingError(f"{path}: line {reader.line_num}: {reason}", remedy=remedy) from None
        if row is None:
            return
        if not row:
            blank = blank or reader.line_num
            continue
        if blank:
            raise SettingError(f"{path}: line {blank} is empty; take it out")
        yield reader.line_num, row


def _columns(rows: Iterator[tuple[int, list[str]]], path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    header = list(names) or next(rows, (1, []))[1]
    if len(set(header)) < len(header):
        raise SettingError(f"{path}: line 1: two columns are called {shown(_repeated(header))}; rename one")
    columns: list[list[str]] = [[] for _ in header]
    for number, row in rows:
        if len(row) != len(header):
            raise SettingError(f"{path}: line {number}: {len(row)} columns instead of {len(header)}; {_REMEDY}")
        for column, field in zip(columns, row, strict=True):
            column.append(field)
    if not columns or not columns[0]:
        raise SettingError(f"{path}: holds no rows under a header")
    return dict(zip(header, columns, strict=True))


def _repeated(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
