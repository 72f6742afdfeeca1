"""Published data sets as tasks of a benchmark: their files, columns and official numbers of rows.

A benchmark says what each set is in an `OfficialSet`; `prepare_main` is the command that makes the canonical files.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_utils.canonical_tsv import write_canonical
from data_utils.command_line import CommandParser, status_of
from data_utils.errors import SettingError, published
from data_utils.hub_folder import read_hub_folder
from data_utils.imported_task import ImportedTask, hold_out_dev, make_task
from data_utils.labelled_texts import ColumnNames, LabelledTexts, labelled_texts
from data_utils.table_file import RawTable, read_table
from data_utils.task_def import TaskDef, TaskType, load_task_defs

_SEED = 1


@dataclass(frozen=True, slots=True)
class OfficialSet:
    """A published data set."""

    folder: str
    """Its folder below the raw files."""
    files: Mapping[str, str | tuple[str, ...]]
    """Split -> the release's file in the folder, or the first of several that is there."""
    columns: ColumnNames
    rows: Mapping[str, int]
    """Split -> official number of rows, without those that are skipped."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Label of the files -> label of the task, where they are called otherwise."""
    skip: tuple[str, ...] = ()
    """Labels whose rows practice leaves out; the empty text stands for no label."""
    read: Callable[[Path, str], RawTable] = lambda path, split: read_table(path)
    """Reads a split's file."""
    hub: ColumnNames | None = None
    """Columns of the Hub's copy, which is read where the release's files are not there."""
    hub_config: str | None = None
    """The configuration to read of a copy that has several."""
    other_names: Mapping[str, str] = field(default_factory=dict)
    """Column of a second release or copy -> what the first calls it."""
    hub_prefix: str = ""
    """Of its splits: ``r1_`` for ``train_r1``."""
    share: float = 0.1
    """Part of train that becomes dev where the set has none; the same rows always."""


def read_set(root: Path, source: OfficialSet, task_def: TaskDef) -> ImportedTask | None:
    """Read a set's splits; None where its files are not there.

    Raises:
        SettingError: a malformed file, column or label.
        OSError: a file cannot be read.
    """
    with published():
        return _read_set(root, source, task_def)


def _read_set(root: Path, source: OfficialSet, task_def: TaskDef) -> ImportedTask | None:
    folder = root / source.folder
    tables, names = _release(folder, source), source.columns
    if not tables:
        if source.hub is None or not folder.is_dir():
            return None
        config = source.hub_config if source.hub_config and (folder / source.hub_config).is_dir() else None
        found, names = read_hub_folder(folder, config), source.hub
        tables = {
            split.removeprefix(source.hub_prefix): [_renamed(table, source.other_names) for table in some]
            for split, some in found.items()
            if _is_of(split, source)
        }
    regression = task_def.task_type is TaskType.Regression
    splits = {split: _rows(some, names, source, regression, split == "test") for split, some in tables.items()}
    if "train" in splits and "dev" not in {*source.files, *splits}:
        splits |= hold_out_dev(splits["train"], source.share, _SEED, stratify=not regression)
    return make_task(task_def.name, splits, regression=regression, known=task_def)


def _release(folder: Path, source: OfficialSet) -> dict[str, list[RawTable]]:
    """Split -> table of the release's files that are there."""
    tables = {}
    for split, files in source.files.items():
        paths = [folder / file for file in ((files,) if isinstance(files, str) else files)]
        if (path := next((path for path in paths if path.is_file()), None)) is not None:
            tables[split] = [_renamed(source.read(path, split), source.other_names)]
    return tables


def _is_of(split: str, source: OfficialSet) -> bool:
    return split.startswith(source.hub_prefix) and split.removeprefix(source.hub_prefix) in source.rows


def _renamed(table: RawTable, names: Mapping[str, str]) -> RawTable:
    wanted = {column: new for column, new in names.items() if column in table.columns and new not in table.columns}
    return replace(table, columns={wanted.get(name, name): values for name, values in table.columns.items()})


def _rows(
    tables: Sequence[RawTable], names: ColumnNames, source: OfficialSet, regression: bool, may_lack_labels: bool
) -> LabelledTexts:
    rows = labelled_texts(tables, names, regression, source.skip, may_lack_labels)
    rows.labels = [label if label is None else source.labels.get(label, label) for label in rows.labels]
    return rows


def prepare_main(
    prog: str, text: str, sets: Mapping[str, OfficialSet], task_def: Path, arguments: Sequence[str] | None
) -> int:
    """Command line of a benchmark's canonical files; returns the exit status."""
    parser = CommandParser(prog, text)
    parser.add_argument("--root_dir", type=Path, default=Path("data"), help="folder of the sets' folders [%(default)s]")
    parser.add_argument("--out", type=Path, help="folder for the canonical files [<root_dir>/canonical_data]")
    parser.add_argument("--tasks", help=f"comma-separated, of {','.join(sets)} [all that are found]")
    args = parser.parse_args(arguments)
    return status_of(lambda: _prepare(args.root_dir, args.out, args.tasks, sets, task_def))


def _prepare(root: Path, out: Path | None, tasks: str | None, sets: Mapping[str, OfficialSet], task_def: Path) -> None:
    definitions = load_task_defs(task_def)
    wanted = list(sets) if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in sets]:
        raise SettingError(f"--tasks: {unknown[0]} is none of {', '.join(sets)}")
    absent = []
    for name in wanted:
        task = read_set(root, sets[name], definitions[name])
        if task is None:
            absent.append(name)
            continue
        _write(task, sets[name], out or root / "canonical_data")
    folders = ", ".join(dict.fromkeys(f"{sets[name].folder}/" for name in absent))
    if absent and (tasks is not None or len(absent) == len(wanted)):
        raise SettingError(
            f"--root_dir {root}: no files of {', '.join(absent)} (looked for {folders}); see docs/data.md"
        )
    if absent:
        print(f"not found, skipped: {', '.join(absent)} (looked for {folders} in {root})")


def _write(task: ImportedTask, source: OfficialSet, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in task.splits.items():
        path = out / f"{task.task_def.dataset_name(split)}.tsv"
        write_canonical(path, rows.uids, [label or "" for label in rows.labels], *rows.texts)
        notes = [f"{n} {what}" for what, n in rows.counts.items() if n]
        print(f"{path}: {len(rows)} rows" + (f" ({'; '.join(notes)})" if notes else ""))
        if len(rows) != source.rows.get(split):
            print(
                f"warning: {task.task_def.name}: {len(rows)} rows for {split}, the official set has "
                f"{source.rows.get(split)}; results on it are not comparable with published ones",
                file=sys.stderr,
            )
