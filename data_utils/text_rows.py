"""Texts to be scored: rows of tab-separated lines whose columns the user names, read piece by piece."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from data_utils.canonical_tsv import split_row
from data_utils.errors import SettingError, shown
from data_utils.task_def import TaskDef

COLUMNS = ("uid", "label", "premise", "hypothesis", "-")
"""Names of columns; ``label`` and ``-`` are passed over."""

_REMEDY = "name the columns with --columns"
_HEADINGS = {
    "uid": frozenset({"uid", "id", "index", "idx", "guid", "pairid", "#1 id", ""}),
    "label": frozenset({"label", "labels", "gold_label", "class", "target", "score", "quality", "is_duplicate"}),
    "premise": frozenset({"premise", "sentence", "sentence1", "text", "text1", "question", "question1", "#1 string"}),
    "hypothesis": frozenset({"hypothesis", "sentence2", "text2", "question2", "sentence", "#2 string"}),
}
"""Usual headings of columns; pandas writes nothing over its index."""


@dataclass(frozen=True, slots=True)
class TextRows:
    """N rows to be scored."""

    uids: list[str]
    premise: list[str]
    hypothesis: list[str] | None
    """None for tasks of one sentence."""


def parse_columns(text: str, task_def: TaskDef) -> tuple[str, ...]:
    """Read names of columns such as ``uid,premise,-``.

    Raises:
        SettingError: an unknown or repeated name, or other sentences than the task has.
    """
    columns = tuple(name.strip() for name in text.split(","))
    wanted = list(task_def.columns[2:])
    for name in columns:
        if name not in COLUMNS or (name != "-" and columns.count(name) > 1):
            reason = "is given twice" if name in COLUMNS else "is unknown"
            raise SettingError(
                f"--columns {shown(text)}: {shown(name)} {reason}; each of {', '.join(COLUMNS)} once, - any number"
            )
    if sorted(set(columns) & {"premise", "hypothesis"}) != sorted(wanted):
        raise SettingError(f"--columns {shown(text)}: task {task_def.name} needs {' and '.join(wanted)}")
    return columns


def looks_like_header(line: str, columns: Sequence[str], task_def: TaskDef) -> bool:
    """Whether a first line names its columns instead of filling them.

    It does where each column but ``-`` is headed by a usual name of it, or where the label is such a name and no label
    of the task. A line of one column may be a text for all that: a sentence of one word.

    Args:
        line: the first line.
        columns: from `parse_columns`.
        task_def: its labels are no header.
    """
    fields = [field.strip().lower() for field in line.split("\t")]
    if len(fields) != len(columns):
        return False
    named = [field in _HEADINGS[name] for field, name in zip(fields, columns, strict=True) if name != "-"]
    if all(named) or "label" not in columns:
        return all(named)
    label = fields[columns.index("label")]
    return label in _HEADINGS["label"] and label not in {name.lower() for name in task_def.label_names}


def iterate_rows(
    lines: Iterable[tuple[int, str]], path: object, columns: Sequence[str], size: int
) -> Iterator[TextRows]:
    """Read rows piece by piece: memory holds one piece.

    Args:
        lines: (line number, text), as `data_utils.canonical_tsv.iterate_lines` gives them.
        path: names the file in messages.
        columns: from `parse_columns`; without ``uid`` the rows are numbered from 0.
        size: rows of a piece, >= 1.

    Yields:
        The rows in order, none of the pieces empty; nothing for no line.

    Raises:
        SettingError: a line with another number of columns.
    """
    place = {name: columns.index(name) for name in ("uid", "premise", "hypothesis") if name in columns}
    remaining, n = iter(lines), 0
    while piece := list(itertools.islice(remaining, size)):
        rows = [split_row(path, number, line, columns, _REMEDY) for number, line in piece]
        yield TextRows(
            uids=[row[place["uid"]] for row in rows] if "uid" in place else [str(n + i) for i in range(len(rows))],
            premise=[row[place["premise"]] for row in rows],
            hypothesis=[row[place["hypothesis"]] for row in rows] if "hypothesis" in place else None,
        )
        n += len(rows)
