"""Rows of a table as they go into a canonical file: names, labels and one or two texts, with counts of oddities."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.canonical_tsv import check_uid
from data_utils.errors import SettingError, shown
from data_utils.table_file import RawTable

_FORBIDDEN = re.compile(r"\r\n|[\t\r\n]")
_WHOLE = re.compile(r"-?[0-9]{1,15}(\.0)?")


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The columns of a table that make a row."""

    text: str
    label: str
    text_pair: str | None = None
    """None for tasks of one text."""
    uid: str | None = None
    """None numbers the rows from 0."""


@dataclass(slots=True)
class LabelledTexts:
    """N rows of a split."""

    uids: list[str]
    labels: list[str | None]
    """None where a row has none."""
    texts: tuple[list[str], ...]
    """One or two columns."""
    places: list[tuple[Path, int]]
    """File of each row, and its number there from 1, for messages."""
    class_names: tuple[str, ...] = ()
    """Of a table that has them, class 0 first."""
    counts: Counter[str] = field(default_factory=Counter)
    """What was changed, left out or odd -> number of rows or texts."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Label -> rows that were left out for it."""

    def __len__(self) -> int:
        return len(self.uids)

    def place(self, row: int) -> str:
        """Return the file of a row and its number there, for messages."""
        path, number = self.places[row]
        return f"{path}: row {number}"

    def take(self, rows: Sequence[int]) -> "LabelledTexts":
        """Return some of the rows, without the counts."""
        texts = tuple([column[i] for i in rows] for column in self.texts)
        uids, labels, places = (
            [self.uids[i] for i in rows],
            [self.labels[i] for i in rows],
            [self.places[i] for i in rows],
        )
        return LabelledTexts(uids, labels, texts, places, self.class_names)


def labelled_texts(
    tables: Sequence[RawTable],
    names: ColumnNames,
    regression: bool = False,
    skip: Collection[str] = (),
    may_lack_labels: bool = False,
) -> LabelledTexts:
    """Make the rows of a split.

    Texts stay as they are, but for tabs and line ends, which a canonical file cannot hold: each becomes a space.

    Args:
        tables: the split's files, in order.
        names: their columns.
        regression: whether labels are scores.
        skip: labels whose rows are left out; the empty text stands for no label.
        may_lack_labels: whether the column of labels may be missing, as in many test sets.

    Raises:
        SettingError: a column that is missing, a text or label that is no text, class names that differ between files,
            or uids that are missing or repeated; names file, row and fix.
    """
    wanted = {"--text": names.text} | ({} if names.text_pair is None else {"--text_pair": names.text_pair})
    result = LabelledTexts([], [], tuple([] for _ in wanted), [])
    for table in tables:
        unlabelled = may_lack_labels and names.label not in table.columns
        labels = [None] * len(table) if unlabelled else _labels(table, names.label, regression)
        columns = [_texts(table, name, setting, result.counts) for setting, name in wanted.items()]
        uids = None if names.uid is None else _texts(table, names.uid, "--uid", Counter())
        kept = [i for i, label in enumerate(labels) if (label or "") not in skip]
        result.skipped.update(label or "" for label in labels if (label or "") in skip)
        if left := len(labels) - len(kept):
            result.counts[f"rows left out, labelled {' or '.join(map(shown, sorted(skip)))}"] += left
        first = len(result)
        result.uids += [str(first + n) if uids is None else uids[i] for n, i in enumerate(kept)]
        result.labels += [labels[i] for i in kept]
        result.places += [(table.path, i + 1) for i in kept]
        for column, found in zip(result.texts, columns, strict=True):
            column += [found[i] for i in kept]
        classes = table.class_names.get(names.label, ())
        if table is not tables[0] and classes != result.class_names:
            raise SettingError(f"{table.path}: its classes are not those of {tables[0].path}; import one of them alone")
        result.class_names = classes
    if not result.uids:
        raise SettingError(f"{tables[0].path}: no row is left")
    if names.uid is not None:
        _check_uids(result, names.uid)
    empty = sum(not text.strip() for column in result.texts for text in column)
    result.counts["texts are empty"] += empty
    return result


def unused_skips(skip: Collection[str], found: Iterable[LabelledTexts]) -> list[str]:
    """Notes on labels whose rows were to be left out and that no row has: a slip, most likely."""
    skipped = {label for rows in found for label in rows.skipped}
    return [f"--skip_label {shown(label)}: no row has it" for label in dict.fromkeys(skip) if label not in skipped]


def _texts(table: RawTable, name: str, setting: str, counts: Counter[str]) -> list[str]:
    texts = []
    for number, value in enumerate(table.column(name, setting), start=1):
        if isinstance(value, list | dict | bytes):
            raise SettingError(
                f"{table.path}: row {number}: {name} is {shown(value)}, no text; join its parts to one text first"
            )
        text = value if isinstance(value, str) else "" if _is_missing(value) else str(value)
        if _FORBIDDEN.search(text):
            text = _FORBIDDEN.sub(" ", text)
            counts["texts held a tab or line end, now a space"] += 1
        _check_characters(text, f"{table.path}: row {number}: {name}")
        texts.append(text)
    return texts


def _check_characters(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise SettingError(f"{where} holds half of a surrogate pair, which is no character; mend it") from None


def _labels(table: RawTable, name: str, regression: bool) -> list[str | None]:
    names = table.class_names.get(name)
    values = table.column(name, "--label")
    # Classes are 1.0 where a missing one made pandas' column one of floats, in Parquet and in CSV.
    present = [value for value in values if not _is_missing(value)]
    whole = not regression and all(map(_is_whole, present))
    if names and whole and not all(isinstance(value, str) and value.strip() in names for value in present):
        values = [value if _is_missing(value) else int(float(value)) for value in values]  # the classes' numbers
    labels: list[str | None] = []
    for number, value in enumerate(values, start=1):
        where = f"{table.path}: row {number}: {name}"
        if isinstance(value, list | dict | tuple | bytes):
            raise SettingError(
                f"{where} is {shown(value)}; a row has one label or one score: tasks with several are not supported"
            )
        if _is_missing(value) or (names and value == -1):  # the Hub's mark of a row without a label
            labels.append(None)
        elif names and isinstance(value, int) and not isinstance(value, bool):
            if not 0 <= value < len(names):
                raise SettingError(f"{table.path}: row {number}: class {value}, but {name} has {len(names)} classes")
            labels.append(names[value])
        elif isinstance(value, bool):
            labels.append("true" if value else "false")
        else:
            label = str(value).strip().removesuffix(".0" if whole else "")
            _check_characters(label, where)
            if _FORBIDDEN.search(label):
                raise SettingError(f"{where} is {shown(label)}; a label holds no tab or line end: is it the column?")
            labels.append(label)
    return labels


def _is_whole(value: Any) -> bool:
    """Whether a value, or a text of one, is a whole number; one of texts is as long as floats write it."""
    return not isinstance(value, bool) and _WHOLE.fullmatch(str(value).strip()) is not None


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def _check_uids(rows: LabelledTexts, name: str) -> None:
    uids, remedy = rows.uids, f"mend {name}, or leave --uid out to number the rows"
    if missing := uids.count(""):
        where = rows.place(uids.index(""))
        raise SettingError(f"{where}: {missing} rows have no uid, this is the first", remedy=remedy)
    for row, uid in enumerate(uids):
        try:
            check_uid(uid)
        except SettingError as error:
            raise SettingError(f"{rows.place(row)}: {error}", remedy=remedy) from None
    counts = Counter(uids)
    if len(counts) < len(uids):
        twice = next(uid for uid in uids if counts[uid] > 1)
        second = uids.index(twice, uids.index(twice) + 1)
        raise SettingError(
            f"{rows.place(uids.index(twice))}: {len(uids) - len(counts)} rows repeat the uid of another, the first "
            f"{shown(twice)}, as in {rows.place(second)}",
            remedy=remedy,
        )
