r"""Canonical data files, byte for byte in MT-DNN's form.

One row a line, ``uid \t label \t premise`` or ``uid \t label \t premise \t hypothesis``: UTF-8, no header, no quoting,
LF line ends. A task with a kd_loss may have a soft label behind the label (`data_utils.soft_labels`). A quote is a
quote and "NA" is a sentence. Rows end at LF (one CR before it is dropped) and nowhere else:
U+2028, U+0085 and their like are ordinary characters, which rules out str.splitlines and text-mode reading.
"""

import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_utils.atomic import write_bytes_atomic
from data_utils.errors import SettingError, shown
from data_utils.task_def import TaskDef, TaskType

SOFT_LABEL = "soft label"
"""Name of the column behind the label in the files of a teacher."""
_BOM = b"\xef\xbb\xbf"
_FORBIDDEN = re.compile(r"[\t\r\n]")
_MAX_UID_BYTES = 256
_MANY = 30  # labels that a message lists
_MAX_SCORE = float(np.finfo(np.float32).max)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rows:
    """A canonical file in memory: N rows."""

    uids: list[str]
    labels: NDArray[Any]
    """(N,) int64 class numbers or float32 values."""
    premise: list[str]
    hypothesis: list[str] | None
    """None for PremiseOnly."""
    soft_labels: NDArray[np.float32] | None = None
    """(N, K) logits of a teacher; None where the file has none."""

    def __len__(self) -> int:
        return len(self.uids)


def iterate_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) of a UTF-8 file, with or without BOM, LF or CRLF.

    Raises:
        SettingError: a line is not UTF-8; names file and line.
        OSError: the file cannot be read.
    """
    # Binary mode: the file is split at LF alone, and read as it goes (MNLI's train.tsv is hundreds of MB).
    with Path(path).open("rb") as file:
        yield from decode_lines(file, path)


def decode_lines(file: BinaryIO, path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of an open binary file, such as standard input; ``path`` names it in messages."""
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(_BOM)
        try:
            yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise SettingError(
                f"{path}: line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start}); "
                "save the file as UTF-8"
            ) from None


def without_blank_end(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield numbered lines without the empty ones that end a file; one in between is a line like any other."""
    blank: list[tuple[int, str]] = []
    for number, line in lines:
        if not line:
            blank.append((number, line))
            continue
        yield from blank
        blank.clear()
        yield number, line


def split_row(path: object, number: int, line: str, columns: Sequence[str], remedy: str | None = None) -> list[str]:
    """Return the fields of a line; refuse it, with a remedy in the message, if there are more or fewer than columns."""
    row = line.split("\t")
    if len(row) != len(columns):
        of_length = "the row is cut off, or without its tabs" if len(row) < len(columns) else "a sentence holds no tab"
        remedy = remedy or of_length
        raise SettingError(
            f"{path}: line {number}: {len(row)} columns instead of {len(columns)} ({', '.join(columns)}); {remedy}"
        )
    return row


def read_canonical(path: str | Path, task_def: TaskDef) -> Rows:
    """Read a canonical file as one piece; see `iterate_canonical`."""
    return next(iterate_canonical(path, task_def, size=None))


def unique_uids(uids: NDArray[np.bytes_], tsv: str | Path) -> NDArray[np.bytes_]:
    """Return the (N,) uids of a file.

    Raises:
        SettingError: some are repeated, which would give two rows' predictions one name.
    """
    found, first, counts = np.unique(uids, return_index=True, return_counts=True)
    if len(found) < len(uids):
        one = int(np.argmin(np.where(counts > 1, first, len(uids))))
        lines = np.flatnonzero(uids == found[one])[:2] + 1
        raise SettingError(
            f"{tsv}: {len(uids) - len(found)} rows repeat the uid of another, the first {shown(found[one].decode())} "
            f"(lines {lines[0]} and {lines[1]}); give each row a uid of its own, such as its number"
        )
    return uids


def iterate_canonical(path: str | Path, task_def: TaskDef, size: int | None) -> Iterator[Rows]:
    """Read a canonical file piece by piece: memory holds one piece.

    Args:
        path: ``<task>_<split>.tsv``.
        task_def: gives the columns and the legal labels.
        size: rows of a piece, >= 1; None for all in one piece.

    Yields:
        The rows in file order, at least one piece, none of them empty.

    Raises:
        SettingError: no row at all, or a malformed one; names file, line and reason.
        OSError: the file cannot be read.

    Rows that look quoted by a CSV writer are warned about at the end (`watch_quotes`).
    """
    lines = watch_quotes(path, without_blank_end(iterate_lines(path)))
    first = list(itertools.islice(lines, 1))
    columns = columns_of(first[0][1], task_def) if first else task_def.columns
    lines = itertools.chain(first, lines)
    rows = _read_rows(path, itertools.islice(lines, size), task_def, columns)
    if rows is None:
        raise SettingError(f"{path}: holds no rows")
    while rows is not None:
        yield rows
        rows = _read_rows(path, itertools.islice(lines, size), task_def, columns)


def columns_of(line: str, task_def: TaskDef) -> tuple[str, ...]:
    """Columns of a canonical file by its first line: those of the task, or with a soft label behind the label."""
    plain = task_def.columns
    fields = line.split("\t")
    soft = task_def.kd_loss is not None and len(fields) == len(plain) + 1 and _are_numbers(fields[2])
    return (*plain[:2], SOFT_LABEL, *plain[2:]) if soft else plain


def watch_quotes(path: str | Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Pass on numbered lines; at their end warn of those that look as if a CSV writer had put texts in quotes."""
    count = first = 0
    for number, line in lines:
        if '""' in line and any(map(is_csv_quoted, line.split("\t"))):
            count, first = count + 1, first or number
        yield number, line
    if count:
        _log.warning(
            "%s: %d rows, the first on line %d, look quoted by a CSV writer; here quotes are text and stay: "
            "import the table (python -m data_utils.import_dataset), or write it without quoting (docs/data.md)",
            path,
            count,
            first,
        )


def is_csv_quoted(field: str) -> bool:
    """Whether a field stands in quotes and holds quotes, all of them doubled."""
    inner = field[1:-1]
    return len(field) > 3 and field[0] == field[-1] == '"' and '""' in inner and '"' not in inner.replace('""', "")


def _read_rows(
    path: str | Path, lines: Iterable[tuple[int, str]], task_def: TaskDef, columns: Sequence[str]
) -> Rows | None:
    """Return the rows in these lines, or None for no line."""
    rows: list[list[str]] = []
    values: list[float] = []
    soft: list[list[float]] | None = [] if SOFT_LABEL in columns else None
    for number, line in lines:
        row = split_row(path, number, line, columns)
        try:
            check_uid(row[0])
            values.append(label_value(row[1], task_def))
            if soft is not None:
                soft.append(_soft_value(row.pop(2), task_def))
        except SettingError as error:
            hint = "; a canonical file has no header" if number == 1 and row[1][:1].isalpha() else ""
            raise SettingError(f"{path}: line {number}: {error}{hint}") from None
        rows.append(row)
    if not rows:
        return None
    uids, _, premise, *hypothesis = (list(column) for column in zip(*rows, strict=True))
    dtype = np.float32 if task_def.task_type is TaskType.Regression else np.int64
    return Rows(
        uids,
        np.array(values, dtype=dtype),
        premise,
        hypothesis[0] if task_def.pair else None,
        None if soft is None else np.array(soft, dtype=np.float32),
    )


def write_canonical(
    path: str | Path,
    uids: Sequence[str],
    labels: Sequence[str],
    premise: Sequence[str],
    hypothesis: Sequence[str] | None = None,
) -> None:
    """Write a canonical file, whole or not at all.

    Args:
        path: target; its folder exists.
        uids: (N,) row names.
        labels: (N,) label texts as they shall stand in the file (class number, class name or score).
        premise: (N,) first or only sentences.
        hypothesis: (N,) second sentences, or None for single-sentence tasks.

    Raises:
        SettingError: a field holds a tab or a line end (CR or LF), which the format cannot hold.
        ValueError: the columns differ in length.
        OSError: the file cannot be written.
    """
    columns = [uids, labels, premise] if hypothesis is None else [uids, labels, premise, hypothesis]
    lines = []
    for number, row in enumerate(zip(*columns, strict=True), start=1):
        for field in row:
            if _FORBIDDEN.search(field):
                raise SettingError(
                    f"{path}: row {number}: {shown(field)} holds a tab or line end; replace it by a space"
                )
        lines.append("\t".join(row) + "\n")
    write_bytes_atomic(path, "".join(lines).encode("utf-8"))


def label_value(text: str, task_def: TaskDef) -> float:
    """Turn a label's text into a class number or a score.

    Raises:
        SettingError: not a label of this task; lists the legal ones.
    """
    if task_def.labels is not None:
        try:
            return task_def.labels.index(text)
        except ValueError:
            raise SettingError(f"label {shown(text)} is none of {_legal(task_def.labels)}") from None
    if task_def.task_type is TaskType.Regression:
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        if not abs(value) <= _MAX_SCORE:
            raise SettingError(f"label {shown(text)} is not a number that float32 holds")
        return value
    # Digits as many as the largest class has, at most: Python refuses to read thousands of them.
    digits = text.lstrip("0") or "0"
    if not (text.isascii() and text.isdigit()) or len(digits) > 9 or int(digits) >= task_def.n_class:
        raise SettingError(f"label {shown(text)} is none of {_legal(range(task_def.n_class))}")
    return int(digits)


def _are_numbers(text: str) -> bool:
    try:
        return bool([float(part) for part in text.split(" ")])
    except ValueError:
        return False


def _soft_value(text: str, task_def: TaskDef) -> list[float]:
    """Turn a soft label's text into K numbers.

    Raises:
        SettingError: they are more or fewer, or one is no number that float32 holds.
    """
    parts = text.split(" ")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if len(values) != task_def.n_class or not all(abs(value) <= _MAX_SCORE for value in values):
        raise SettingError(
            f"soft label {shown(text)} is not {task_def.n_class} numbers with a space between them; write the column "
            "with predict.py --soft, or drop it"
        )
    return values


def _legal(labels: Sequence[object]) -> str:
    more = f", ... ({len(labels)} in all)" if len(labels) > _MANY else ""
    return ", ".join(map(str, labels[:_MANY])) + more


def check_uid(uid: str) -> None:
    """Refuse a uid that a token cache cannot hold.

    Raises:
        SettingError: it holds a NUL character, or is too long.
    """
    # uids are stored as fixed-width bytes, which end at a NUL and are as wide as the widest.
    if "\0" in uid or len(uid.encode()) > _MAX_UID_BYTES:
        raise SettingError(f"uid {shown(uid)} holds a NUL character or is longer than {_MAX_UID_BYTES} bytes")
