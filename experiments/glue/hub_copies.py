"""GLUE's tasks as the Hub's copies have them: tables with class names in an order of their own.

``<root>/cola/train-00000-of-00001.parquet`` and the like, or the same as CSV, JSON or Arrow. Classes are mapped by
name; numbers are the Hub's only where the file says so, with class names or with the Hub's column ``idx``.
"""

from dataclasses import dataclass
from pathlib import Path

from data_utils.canonical_tsv import label_value
from data_utils.errors import SettingError, published, shown
from data_utils.hub_folder import read_hub_folder
from data_utils.labelled_texts import ColumnNames, labelled_texts
from data_utils.table_file import RawTable
from data_utils.task_def import TaskDef, TaskType
from experiments.glue.glue_readers import IMPORTER, TASKS, RawSplit


@dataclass(frozen=True, slots=True)
class HubCopy:
    """A task as the Hub has it."""

    folder: str
    """Its configuration."""
    columns: tuple[str, ...]
    """Its one or two texts."""
    classes: tuple[str, ...]
    """Names of its classes in the Hub's order; none for scores."""


_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
HUB_COPIES: dict[str, HubCopy] = {
    "cola": HubCopy("cola", ("sentence",), ("unacceptable", "acceptable")),
    "mnli": HubCopy("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "mrpc": HubCopy("mrpc", _SENTENCES, ("not_equivalent", "equivalent")),
    "qnli": HubCopy("qnli", ("question", "sentence"), _ENTAILMENT),
    "qqp": HubCopy("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
    "rte": HubCopy("rte", _SENTENCES, _ENTAILMENT),
    "sst": HubCopy("sst2", ("sentence",), ("negative", "positive")),
    "stsb": HubCopy("stsb", _SENTENCES, ()),
    "wnli": HubCopy("wnli", _SENTENCES, ("not_entailment", "entailment")),
}


def hub_split(split: str) -> str:
    """Return the Hub's name of a split: ``validation_matched`` for ``matched_dev``."""
    part, _, name = split.rpartition("_")
    first = {"dev": "validation"}.get(name, name)
    return f"{first}_{part}" if part else first


def find_copy(root: Path, task: str) -> dict[str, list[RawTable]]:
    """Read the tables of a task under a folder; split -> tables, nothing where there are none.

    Raises:
        SettingError: a table is damaged, or its package is missing.
    """
    for name in dict.fromkeys((HUB_COPIES[task].folder, TASKS[task].folder)):
        folder = root / name
        if any(any(found) for found in (folder.rglob("*.parquet"), folder.rglob("*.arrow"), folder.glob("*.[cj]*"))):
            with published():
                found = read_hub_folder(root, name)
            return {split: tables for split, tables in found.items() if split in TASKS[task].splits}
    return {}


def read_copy(tables: list[RawTable], task_def: TaskDef, split: str) -> RawSplit:
    """Make a split's rows of a copy, as the raw files give them.

    Raises:
        SettingError: a column or class name that is not the task's; names file and those there are.
    """
    copy, source = HUB_COPIES[task_def.name], TASKS[task_def.name].splits[split]
    labelled = source.labelled(TASKS[task_def.name])
    label = "label" if labelled else copy.columns[0]  # the Hub has -1 in test sets, or nothing
    for name in (*copy.columns, label):
        if name not in tables[0].columns:
            there, wanted = shown(", ".join(map(str, tables[0].columns))), ", ".join((*copy.columns, "label"))
            told = f"a copy of {task_def.name} has {wanted}, this {there}"
            raise SettingError(f"{tables[0].path}: no column {name!r}; {told}; {IMPORTER}")
    uid = "idx" if source.uid and "idx" in tables[0].columns else None
    regression = task_def.task_type is TaskType.Regression
    with published():
        rows = labelled_texts(tables, ColumnNames(copy.columns[0], label, (*copy.columns, None)[1], uid), regression)
    texts = tuple(rows.texts)
    # MT-DNN strips each line of a raw file: white space at the ends of its first and last column.
    if not labelled or task_def.name in ("cola", "mrpc"):
        texts = (*texts[:-1], [text.rstrip() for text in texts[-1]])
    elif task_def.name == "sst":
        texts = ([text.lstrip() for text in texts[0]],)
    labels = [task_def.dummy_label] * len(rows)
    if labelled:
        labels = [_label(name, task_def, tables[0], rows.place(row)) for row, name in enumerate(rows.labels)]
    return RawSplit(
        rows.uids, labels, texts, carriage_returns=sum(rows.counts.values()) - rows.counts["texts are empty"]
    )


def _label(found: str | None, task_def: TaskDef, table: RawTable, place: str) -> str:
    """Return a label as the task's canonical files have it: its name, or the number of its class."""
    classes = HUB_COPIES[task_def.name].classes
    label = found or ""
    if label in classes:
        return label if task_def.labels else str(classes.index(label))
    if task_def.labels and label.isdecimal() and int(label) < len(classes):
        if "idx" not in table.columns:
            raise SettingError(
                f"{place}: label {label} is a number without a name; {task_def.name} has "
                f"{', '.join(task_def.labels)}, the Hub's copies {', '.join(classes)}: write the names"
            )
        return classes[int(label)]
    try:
        label_value(label, task_def)
    except SettingError as error:
        nor = f", nor {', '.join(classes)}" if classes else ""
        raise SettingError(f"{place}: {error}{nor}") from None
    return label
