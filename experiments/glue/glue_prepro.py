"""Raw GLUE files to canonical ones, for the tasks that are there.

    python experiments/glue/glue_prepro.py --root_dir data

reads ``data/CoLA/train.tsv`` and so on and writes ``data/canonical_data/cola_train.tsv`` in MT-DNN's form;
also ``train.tsv.gz``, and the Hub's copies (``data/cola/train-00000-of-00001.parquet``, or as CSV). A row
count that is not the official one is a warning; a malformed row is an error. Test splits get a dummy label.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

if __package__ in {None, ""}:  # run as a script: the project root is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_utils.canonical_tsv import write_canonical
from data_utils.command_line import CommandParser, status_of
from data_utils.errors import SettingError, shown
from data_utils.task_def import TaskDef, load_task_defs
from experiments.glue.glue_readers import MSR_FILES, TASKS, RawSplit, check_version, read_msr_paraphrase, read_split
from experiments.glue.hub_copies import find_copy, read_copy

GLUE_TASK_DEF = Path(__file__).with_name("glue_task_def.yml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 2 a mistake in settings or files)."""
    parser = CommandParser("glue_prepro.py", __doc__)
    parser.add_argument(
        "--root_dir", type=Path, default=Path("data"), help="folder with CoLA/, MRPC/, ... [%(default)s]"
    )
    parser.add_argument("--out", type=Path, help="folder for the canonical files [<root_dir>/canonical_data]")
    parser.add_argument("--tasks", help=f"comma-separated, of {','.join(TASKS)} [all that are found]")
    parser.add_argument("--task_def", type=Path, default=GLUE_TASK_DEF, help="labels of the tasks [%(default)s]")
    args = parser.parse_args(argv)

    def work() -> None:
        convert(args.root_dir, args.out or args.root_dir / "canonical_data", task_names(args.tasks), args.task_def)

    return status_of(work)


def task_names(text: str | None) -> tuple[str, ...] | None:
    """Split ``cola,mrpc`` into names; None stays None.

    Raises:
        SettingError: a name that is not a GLUE task, or no name.
    """
    if text is None:
        return None
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise SettingError(
            f"--tasks {shown(text)}: {shown(unknown[0] if unknown else 'nothing')} is none of {', '.join(TASKS)}"
        )
    return names


def convert(root: Path, out: Path, tasks: Sequence[str] | None = None, task_def: Path = GLUE_TASK_DEF) -> list[Path]:
    """Write the canonical files of all tasks found under ``root``.

    Args:
        root: holds the tasks' folders under GLUE's names.
        out: made if it is missing.
        tasks: names; a task that is named and not there is an error. None takes what is there.
        task_def: task definition file.

    Returns:
        The files written.

    Raises:
        SettingError: no task found, a named task missing, or a malformed row.
        OSError: a folder or file cannot be read or written.
    """
    if not root.is_dir():
        raise SettingError(f"--root_dir {root}: no such folder; scripts/download_glue.sh fetches the files")
    definitions = load_task_defs(task_def)
    written: list[Path] = []
    absent = []
    for name in tasks or TASKS:
        sources = _sources(root / TASKS[name].folder, name) or _copies(root, name)
        if not sources:
            absent.append(name)
            continue
        definition = definitions.find(name, "--task_def")
        out.mkdir(parents=True, exist_ok=True)
        written += _convert_task(out, definition, sources)
    if absent and tasks:
        raise SettingError(f"{root}: no files of {', '.join(absent)} (looked for {_folders(absent)})")
    if not written:
        raise SettingError(f"{root}: no GLUE task found (looked for {_folders(absent)}); see docs/data.md")
    if absent:
        print(f"not found, skipped: {', '.join(absent)} (looked for {_folders(absent)} in {root})")
    return written


_Reader = Callable[[TaskDef], RawSplit]


def _sources(folder: Path, name: str) -> dict[str, tuple[str, _Reader]]:
    """Return split -> (file name, reader) for the splits whose files are there."""
    found: dict[str, tuple[str, _Reader]] = {}
    for split, source in TASKS[name].splits.items():
        files = (folder / source.file, folder / f"{source.file}.gz")
        path = next((path for path in files if path.is_file()), None)
        if path is not None:
            found[split] = (path.name, partial(read_split, path, split=split))
        elif name == "mrpc" and split == "test" and (folder / MSR_FILES["test"]).is_file():
            found[split] = (MSR_FILES["test"], partial(read_split, folder / MSR_FILES["test"], split=split))
        elif name == "mrpc" and split != "test" and (folder / MSR_FILES["train"]).is_file():
            found[split] = (MSR_FILES["train"], partial(_msr_split, folder, split))
    return found


def _copies(root: Path, name: str) -> dict[str, tuple[str, _Reader]]:
    """Return split -> (file name, reader) for a task that lies there as the Hub has it."""
    return {
        split: (tables[0].path.name, partial(read_copy, tables, split=split))
        for split, tables in find_copy(root, name).items()
    }


def _msr_split(folder: Path, split: str, task_def: TaskDef) -> RawSplit:
    return read_msr_paraphrase(folder, task_def)[split]


def _convert_task(out: Path, task_def: TaskDef, sources: dict[str, tuple[str, _Reader]]) -> list[Path]:
    task = TASKS[task_def.name]
    written = []
    for split, source in task.splits.items():
        if split not in sources:
            print(f"{task_def.name}: no {task.folder}/{source.file}, {split} skipped")
            continue
        file, reader = sources[split]
        is_copy = file not in (source.file, f"{source.file}.gz", *MSR_FILES.values())
        raw = reader(task_def)
        check_version(task_def.name, file, len(raw))
        path = out / f"{task_def.dataset_name(split)}.tsv"
        write_canonical(path, raw.uids, raw.labels, *raw.sentences)
        written.append(path)
        notes = [f"{raw.skipped} skipped"] if raw.skipped else []
        notes += [f"{raw.carriage_returns} with a CR inside, now a space"] if raw.carriage_returns else []
        notes += [f"from the copy {file}, classes by name"] if is_copy else []
        print(f"{path}: {len(raw)} rows" + (f" ({', '.join(notes)})" if notes else ""))
        if len(raw) != source.rows:
            print(
                f"warning: {task.folder}/{file}: {len(raw)} rows for {split}, the official file has {source.rows}; "
                "results on it are not comparable with published ones",
                file=sys.stderr,
            )
    return written


def _folders(tasks: Sequence[str]) -> str:
    return ", ".join(f"{TASKS[name].folder}/" for name in tasks)


if __name__ == "__main__":
    sys.exit(main())
