"""A task made of tables: its definition and canonical files, from labelled texts."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_utils.atomic import write_text_atomic
from data_utils.canonical_tsv import label_value, write_canonical
from data_utils.errors import SettingError, shown
from data_utils.holdout import held_out_rows
from data_utils.labelled_texts import LabelledTexts
from data_utils.task_def import TEXT_LISTS, TaskDef, TaskType, from_settings, to_settings
from data_utils.yaml_file import read_yaml

TASK_DEF_FILE = "task_def.yml"
"""Name of the task definition file beside imported canonical files."""
_SPLIT_ORDER = ("train", "dev", "test")
_LIST_MARKS = re.compile(r"[,;|]")
_LIST = re.compile(r"[\[{(].*,.*[\]})]")  # as JSON and Python write them in a cell of text


@dataclass(frozen=True, slots=True)
class ImportedTask:
    """A task's definition and the rows of its splits."""

    task_def: TaskDef
    splits: Mapping[str, LabelledTexts]
    """Split -> rows; each label is one of the task's."""

    def write(self, out: Path) -> list[Path]:
        """Write the canonical files and the task's entry in the definition file of ``out``, which is made if missing.

        Entries of other tasks stay. Nothing is written unless everything is in order.

        Returns:
            The files, the definitions last.

        Raises:
            SettingError: the definition file is no such file.
            OSError: a file cannot be written.
        """
        definitions = out / TASK_DEF_FILE
        entries = _entries(definitions) | {self.task_def.name: to_settings(self.task_def)}
        out.mkdir(parents=True, exist_ok=True)
        written = []
        for split, rows in self.splits.items():
            written.append(out / f"{self.task_def.dataset_name(split)}.tsv")
            write_canonical(written[-1], rows.uids, [label or "" for label in rows.labels], *rows.texts)
        write_text_atomic(definitions, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))
        return [*written, definitions]


def make_task(
    name: str,
    splits: Mapping[str, LabelledTexts],
    *,
    regression: bool = False,
    labels: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    known: TaskDef | None = None,
) -> ImportedTask:
    """Make a task of the rows of its splits.

    Args:
        name: of the task.
        splits: split -> rows. Rows of a test split may have no label: they get the first one, as MT-DNN's have.
        regression: whether labels are scores.
        labels: label texts, class 0 first; by default the names that the tables have, else those that occur: numbers
            by value, texts by the alphabet.
        metrics: of the task, as in a definition file; by default accuracy and F1, of more than two classes macro-F1,
            of scores both correlations.
        known: the task as it was imported before, whose splits are added to.

    Raises:
        SettingError: a row without a label, one that is none of the task's, or a name that is not allowed.
    """
    for split, rows in splits.items():
        _check_labelled(split, rows)
    if known is not None:
        task_def = known
    else:
        classes = None if regression else tuple(labels or _class_names(splits))
        settings = {
            "data_format": "PremiseAndOneHypothesis" if _is_pair(splits) else "PremiseOnly",
            "task_type": "Regression" if regression else "Classification",
            "n_class": 1 if classes is None else len(classes),
            "metric_meta": list(metrics or _metrics(classes)),
            "labels": None if classes is None else list(classes),
            "split_names": _split_names(splits),
            "enable_san": False,
        }
        task_def = from_settings(name, settings, where="import")
    if task_def.pair is not _is_pair(splits) or (task_def.task_type is TaskType.Regression) is not regression:
        raise SettingError(
            f"task {name} was imported before with {task_def.data_format} and {task_def.task_type}; give --text_pair "
            "and --regression as then, or choose another --task"
        )
    for setting, given, has in (("labels", labels, task_def.labels), ("metrics", metrics, task_def.metric_meta)):
        if given is not None and list(given) != list(has or ()):
            raise SettingError(
                f"--{setting} {','.join(given)}: task {name} was imported before with {','.join(has or ())}; drop it, "
                "or choose another --task"
            )
    for rows in splits.values():
        _fill_labels(rows, task_def)
    return ImportedTask(task_def, splits)


def hold_out_dev(rows: LabelledTexts, share: float, seed: int, stratify: bool) -> dict[str, LabelledTexts]:
    """Divide rows at random into train and dev; labels in proportion where ``stratify``.

    Raises:
        SettingError: nothing is left for one of the two.
    """
    codes = {label: code for code, label in enumerate(sorted({label or "" for label in rows.labels}))}
    try:
        chosen = held_out_rows([codes[label or ""] for label in rows.labels], share, stratify, seed)
    except SettingError as error:
        raise SettingError(str(error).replace("holdout is", "a share of", 1), "--dev_share") from None
    rest = np.setdiff1d(np.arange(len(rows)), chosen)
    return {"train": rows.take(rest.tolist()), "dev": rows.take(chosen.tolist())}


def known_task(out: Path, name: str) -> TaskDef | None:
    """Return the task as it stands in the definition file of a folder; None where it does not.

    Raises:
        SettingError: the file or the entry is no definition.
    """
    path = out / TASK_DEF_FILE
    entries = _entries(path)
    return from_settings(name, entries[name], where=str(path)) if name in entries else None


def _entries(path: Path) -> dict[str, Any]:
    return read_yaml(path, texts=TEXT_LISTS) if path.is_file() else {}


def _place(split: str) -> int:
    return next((i for i, part in enumerate(_SPLIT_ORDER) if split.endswith(part)), len(_SPLIT_ORDER))


def _split_names(splits: Collection[str]) -> list[str]:
    """Split names of a task: those there are, and the usual ones; a ``dev`` would be missing beside ``matched_dev``."""
    names = sorted({*splits, *_SPLIT_ORDER}, key=lambda split: (_place(split), split))
    return [name for name in names if name in splits or not any(split.endswith(f"_{name}") for split in splits)]


def _is_pair(splits: Mapping[str, LabelledTexts]) -> bool:
    return all(len(rows.texts) == 2 for rows in splits.values())


def _metrics(classes: Sequence[str] | None) -> list[str]:
    if classes is None:
        return ["Pearson", "Spearman"]
    return ["ACC", "F1" if len(classes) == 2 else "F1MAC"]


def _class_names(splits: Mapping[str, LabelledTexts]) -> list[str]:
    """Label texts in order: the tables' own, else those of all splits, numbers by value and texts by the alphabet."""
    named = next((rows.class_names for rows in splits.values() if rows.class_names), None)
    if named is not None:
        return list(named)
    counts = Counter(label for rows in splits.values() for label in rows.labels if label is not None)
    _refuse_lists(counts)
    once = sum(count == 1 for count in counts.values())
    if len(counts) > 20 and 2 * once > len(counts):
        raise SettingError(
            f"--label: {len(counts)} different labels, {once} of them on one row alone; if they are scores give "
            "--regression, if not this is another column"
        )
    if len(counts) < 2:
        raise SettingError(
            f"--label: every row has the label {shown(next(iter(counts), None))}; two classes are needed"
        )
    try:
        return sorted(counts, key=int)
    except ValueError:
        return sorted(counts)


def _refuse_lists(labels: Collection[str]) -> None:
    """Refuse labels that are lists of labels: ``sport,politics`` beside ``sport`` and ``politics``, or ``[1, 2]``."""
    for label in labels:
        parts = [part.strip() for part in _LIST_MARKS.split(label)]
        if (len(parts) > 1 and all(part in labels for part in parts)) or _LIST.fullmatch(label):
            raise SettingError(
                f"--label: {shown(label)} is a list of labels; a row has one label: tasks with several are not "
                "supported; if it is a class of its own, name all classes with --labels"
            )


def _check_labelled(split: str, rows: LabelledTexts) -> None:
    missing = [row for row, label in enumerate(rows.labels) if label is None]
    if missing and not (split.endswith("test") and len(missing) == len(rows)):
        first = rows.place(min(missing, key=rows.places.__getitem__))
        raise SettingError(
            f"{first} has no label, the first of {len(missing)} without among {len(rows)} of {split}",
            remedy="label them, or leave them out with --skip_label ''",
        )


def _fill_labels(rows: LabelledTexts, task_def: TaskDef) -> None:
    """Check each label, and give a test split without labels MT-DNN's dummy."""
    if missing := rows.labels.count(None):
        rows.counts[f"rows have no label and get {task_def.dummy_label}"] += missing
    rows.labels = [task_def.dummy_label if label is None else label for label in rows.labels]
    remedy = "--labels names all, --regression takes scores"
    if task_def.task_type is TaskType.Regression:
        remedy = "a score is written like 4.5; mend it, or leave its rows out with --skip_label"
    for row, label in enumerate(rows.labels):
        try:
            label_value(label or "", task_def)
        except SettingError as error:
            raise SettingError(f"{rows.place(row)}: {error}", remedy=remedy) from None
