"""Rows of a table as they go into a canonical file: names, labels and one or two texts, with counts of oddities."""

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_utils.canonical_tsv import check_uid
from data_utils.errors import SettingError, shown
from data_utils.table_file import RawTable

_FORBIDDEN = re.compile(r"\r\n|[\t\r\n]")


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
    class_names: tuple[str, ...] = ()
    """Of a table that has them, class 0 first."""
    counts: Counter[str] = field(default_factory=Counter)
    """What was changed, left out or odd -> number of rows or texts."""

    def __len__(self) -> int:
        return len(self.uids)

    def take(self, rows: Sequence[int]) -> "LabelledTexts":
        """Return some of the rows, without the counts."""
        texts = tuple([column[i] for i in rows] for column in self.texts)
        return LabelledTexts([self.uids[i] for i in rows], [self.labels[i] for i in rows], texts, self.class_names)


def labelled_texts(
    tables: Sequence[RawTable], names: ColumnNames, regression: bool = False, skip: Collection[str] = ()
) -> LabelledTexts:
    """Make the rows of a split.

    Texts stay as they are, but for tabs and line ends, which a canonical file cannot hold: each becomes a space.

    Args:
        tables: the split's files, in order.
        names: their columns.
        regression: whether labels are scores.
        skip: labels whose rows are left out; the empty text stands for no label.

    Raises:
        SettingError: a column that is missing, a text or label that is a list, class names that differ between files,
            or uids that are missing or repeated; names file, row and fix.
    """
    wanted = {"--text": names.text} | ({} if names.text_pair is None else {"--text_pair": names.text_pair})
    result = LabelledTexts([], [], tuple([] for _ in wanted))
    for table in tables:
        labels = _labels(table, names.label, regression)
        columns = [_texts(table, name, setting, result.counts) for setting, name in wanted.items()]
        uids = None if names.uid is None else _texts(table, names.uid, "--uid", Counter())
        kept = [i for i, label in enumerate(labels) if (label or "") not in skip]
        if left := len(labels) - len(kept):
            result.counts[f"rows left out, labelled {' or '.join(map(shown, sorted(skip)))}"] += left
        first = len(result)
        result.uids += [str(first + n) if uids is None else uids[i] for n, i in enumerate(kept)]
        result.labels += [labels[i] for i in kept]
        for column, found in zip(result.texts, columns, strict=True):
            column += [found[i] for i in kept]
        classes = table.class_names.get(names.label, ())
        if table is not tables[0] and classes != result.class_names:
            raise SettingError(f"{table.path}: its classes are not those of {tables[0].path}; import one of them alone")
        result.class_names = classes
    if not result.uids:
        raise SettingError(f"{tables[0].path}: no row is left")
    if names.uid is not None:
        _check_uids(result.uids, tables[0], names.uid)
    empty = sum(not text.strip() for column in result.texts for text in column)
    result.counts["texts are empty"] += empty
    return result


def _texts(table: RawTable, name: str, setting: str, counts: Counter[str]) -> list[str]:
    texts = []
    for number, value in enumerate(table.column(name, setting), start=1):
        if isinstance(value, list | dict | bytes):
            raise SettingError(
                f"{table.path}: row {number}: {name} is {shown(value)}, no text; join its parts to one text first"
            )
        text = "" if _is_missing(value) else str(value)
        if _FORBIDDEN.search(text):
            text = _FORBIDDEN.sub(" ", text)
            counts["texts held a tab or line end, now a space"] += 1
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise SettingError(
                f"{table.path}: row {number}: {name} holds half of a surrogate pair, which is no character; mend it"
            ) from None
        texts.append(text)
    return texts


def _labels(table: RawTable, name: str, regression: bool) -> list[str | None]:
    names = table.class_names.get(name)
    values = table.column(name, "--label")
    whole = not regression and all(value == int(value) for value in values if _is_number(value))
    labels: list[str | None] = []
    for number, value in enumerate(values, start=1):
        if isinstance(value, list | dict | tuple | bytes):
            raise SettingError(
                f"{table.path}: row {number}: {name} is {shown(value)}; a row has one label or one score: tasks with "
                "several are not supported"
            )
        if _is_missing(value) or (names and value == -1):  # the Hub's mark of a row without a label
            labels.append(None)
        elif names and isinstance(value, int) and not isinstance(value, bool):
            if not 0 <= value < len(names):
                raise SettingError(f"{table.path}: row {number}: class {value}, but {name} has {len(names)} classes")
            labels.append(names[value])
        elif isinstance(value, bool):
            labels.append("true" if value else "false")
        else:  # classes may be 1.0 where a missing one made the column a column of floats
            labels.append(str(int(value)) if whole and _is_number(value) else str(value).strip())
    return labels


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool | str) and hasattr(value, "__float__") and math.isfinite(value)


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float | np.floating) and math.isnan(value))


def _check_uids(uids: Sequence[str], table: RawTable, name: str) -> None:
    remedy = f"mend {name}, or leave --uid out to number the rows"
    if missing := uids.count(""):
        raise SettingError(f"{table.path}: {missing} rows have no uid, the first is row {uids.index('') + 1}; {remedy}")
    for number, uid in enumerate(uids, start=1):
        try:
            check_uid(uid)
        except SettingError as error:
            raise SettingError(f"{table.path}: row {number}: {error}; {remedy}") from None
    counts = Counter(uids)
    if len(counts) < len(uids):
        twice = next(uid for uid in uids if counts[uid] > 1)
        raise SettingError(
            f"{table.path}: {len(uids) - len(counts)} rows repeat the uid of another, the first {shown(twice)} (rows "
            f"{uids.index(twice) + 1} and {len(uids) - uids[::-1].index(twice)}); {remedy}"
        )
