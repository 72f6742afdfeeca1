"""Make a task of one's own of a table: its canonical files and its entry in a task definition file.

    python -m data_utils.import_dataset reviews.csv --task reviews --text review --label stars --out my_data
    python -m data_utils.import_dataset pairs.jsonl.gz --task pairs --text a --text_pair b --label score --regression \
        --out my_data
    python -m data_utils.import_dataset new.parquet --task reviews --text review --label stars --split test \
        --out my_data
    python -m data_utils.import_dataset clones/imdb --task imdb --text text --label label --out my_data     a Hub folder

Kinds: CSV, TSV, JSON lines, JSON, Parquet and Arrow (requirements-parquet.txt), each also under gzip. Several files are
train, dev and test by their names, or with --split one split. A file alone is divided into train and dev.
Writes OUT/<task>_<split>.tsv and OUT/task_def.yml, whose other tasks stay.
Exit status: 0 done, 2 a setting or file is wrong.
"""

import argparse
import csv
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_utils.command_line import CommandParser, status_of
from data_utils.delimited_file import QUOTINGS, delimiter_of
from data_utils.errors import SettingError
from data_utils.hub_folder import read_hub_folder, split_in_name
from data_utils.imported_task import TASK_DEF_FILE, ImportedTask, hold_out_dev, known_task, make_task
from data_utils.labelled_texts import ColumnNames, LabelledTexts, labelled_texts, unused_skips
from data_utils.table_file import RawTable, read_table
from data_utils.task_def import Metric, TaskType
from data_utils.tokenizer import MAX_MAX_SEQ_LEN, encode_batches, load_tokenizer

_DEV_SHARE = 0.1
_FEW = 10  # names in a list


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(arguments)
    return status_of(lambda: import_dataset(args))


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser("python -m data_utils.import_dataset", __doc__)
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="tables, or one folder of a data set from the Hub")
    add("--task", required=True, help="name of the task: letters, digits, . and -")
    add("--text", required=True, metavar="COLUMN", help="the text, or the first of two")
    add("--text_pair", metavar="COLUMN", help="the second text")
    add("--label", required=True, metavar="COLUMN", help="the class, by name or number, or with --regression the score")
    add("--uid", metavar="COLUMN", help="names of the rows [their numbers]")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the canonical files and task_def.yml")
    add("--regression", action="store_true", help="labels are scores")
    add("--labels", help="the labels with commas between them, class 0 first [the file's; else by number or alphabet]")
    add("--metrics", help=f"of {','.join(Metric)} [ACC,F1; more than two classes ACC,F1MAC; scores Pearson,Spearman]")
    add(
        "--skip_label",
        action="append",
        default=[],
        metavar="LABEL",
        help="leave out its rows; '': those without a label",
    )
    add("--split", choices=("train", "dev", "test"), help="split that the files are")
    add("--dev_share", type=float, metavar="SHARE", help=f"rows of train that become dev, in (0, 1) [{_DEV_SHARE}]")
    add("--seed", type=int, default=1, help="of the random choice of dev rows [%(default)s]")
    add("--config", help="configuration of a Hub folder that has several")
    add("--delimiter", help="between columns of a CSV or TSV file [comma or tab]")
    add("--quoting", choices=QUOTINGS, default="auto", help="of a CSV or TSV file [%(default)s]")
    add("--max_seq_len", type=int, default=512, help="tokens beyond which an example will be cut [%(default)s]")
    add("--tokenizer", type=Path, metavar="DIR", help="folder of an encoder, to count the cut examples exactly")
    return parser


def import_dataset(args: argparse.Namespace) -> None:
    """Import the files of a command line, and tell what was written.

    Raises:
        SettingError: a setting, file or row is wrong; nothing is written.
        OSError: a file cannot be read or written.
    """
    _refuse_idle(args)
    tables = _tables(args)
    names = ColumnNames(args.text, args.label, args.text_pair, args.uid)
    splits = {
        split: labelled_texts(
            some, names, args.regression, args.skip_label, may_lack_labels=split.endswith("test") and "train" in tables
        )
        for split, some in tables.items()
    }
    counts = {split: rows.counts for split, rows in splits.items()}
    unused = unused_skips(args.skip_label, splits.values())
    if args.split is None:
        splits = _with_dev(splits, args)
    task = make_task(
        args.task, splits, regression=args.regression, labels=_listed(args.labels), metrics=_listed(args.metrics),
        known=known_task(args.out, args.task) if args.split is not None else None,
    )  # fmt: skip
    notes = [f"{split}: {n} {what}" for split, found in counts.items() for what, n in found.items() if n]
    notes += unused + _about_labels(task) + _about_lengths(task, args)
    notes += _stale(task, args)
    for path, rows in zip(task.write(args.out), [*map(len, splits.values()), None], strict=True):
        print(f"{path}: {rows} rows" if rows is not None else f"{path}: {_described(task)}")
    print("".join(f"note: {note}\n" for note in notes), end="")
    print(f"next: {_next_command(task, args)}")


def _next_command(task: ImportedTask, args: argparse.Namespace) -> str:
    """The command of a study, or of the import of a split that it would miss."""
    files = {split: args.out / f"{task.task_def.dataset_name(split)}.tsv" for split in task.task_def.split_names}
    for part in ("train", "dev"):
        if not any(file.exists() for split, file in files.items() if split.endswith(part)):
            columns = ["--text", args.text, *(["--text_pair", args.text_pair] if args.text_pair else [])]
            columns += ["--label", args.label, *(["--regression"] if args.regression else [])]
            command = ["python", "-m", "data_utils.import_dataset", "FILE", "--task", args.task, *columns]
            return shlex.join([*command, "--split", part, "--out", str(args.out)])
    where = ["--task_def", str(args.out / TASK_DEF_FILE), "--data_dir", str(args.out), "--tasks", args.task]
    study = ["python", "-m", "experiments.study", *where, "--encoder", "all-MiniLM-L6-v2", "--methods", "vanilla,pats"]
    return shlex.join(study)


def _refuse_idle(args: argparse.Namespace) -> None:
    """Refuse settings that would do nothing beside the others.

    Raises:
        SettingError: there is one.
    """
    if args.split is not None and args.dev_share is not None:
        raise SettingError(f"--dev_share divides a file, and --split says that it is {args.split}; drop one of the two")
    if args.regression and args.labels is not None:
        raise SettingError("--labels names classes, and --regression takes scores; drop one of the two")


def _stale(task: ImportedTask, args: argparse.Namespace) -> list[str]:
    """Notes on files of the task that an earlier import left and this one does not write."""
    if args.split is not None:
        return []
    files = [args.out / f"{task.task_def.dataset_name(split)}.tsv" for split in task.task_def.split_names]
    written = {args.out / f"{task.task_def.dataset_name(split)}.tsv" for split in task.splits}
    return [f"{file} is of an earlier import and stays" for file in files if file.exists() and file not in written]


def _tables(args: argparse.Namespace) -> dict[str, list[RawTable]]:
    """Split -> its tables; a file alone is ``train`` unless ``--split`` says otherwise."""
    for path in args.files:
        if not path.exists():
            raise SettingError(f"FILE {path} does not exist; name a table, or a folder of a data set from the Hub")
    folders = [path for path in args.files if path.is_dir()]
    if folders:
        if given := next(
            (name for name in ("delimiter", "quoting") if getattr(args, name) not in (None, "auto")), None
        ):
            raise SettingError(f"--{given} is for CSV and TSV files by name, FILE {folders[0]} is a folder; drop it")
        if len(args.files) > 1 or args.split is not None:
            raise SettingError(f"FILE {folders[0]} is a folder; give it alone, without --split: its files tell splits")
        return read_hub_folder(folders[0], args.config)
    if args.config is not None:
        raise SettingError("--config is for a folder of a Hub data set; give the folder, or drop it")
    found: dict[str, list[RawTable]] = {}
    for path in args.files:
        split = args.split or ("train" if len(args.files) == 1 else split_in_name(path))
        if split is None:
            raise SettingError(f"FILE {path}: its name has no word train, dev or test; give --split, a split at a time")
        found.setdefault(split, []).append(read_table(path, delimiter_of(args.delimiter), args.quoting))
    return found


def _with_dev(splits: dict[str, LabelledTexts], args: argparse.Namespace) -> dict[str, LabelledTexts]:
    """Add a dev split, taken from train, where there is none."""
    if "train" not in splits:
        raise SettingError(f"FILE: there is {' and '.join(splits)} but no train; give --split to add to a task")
    if any(split.endswith("dev") for split in splits):
        if args.dev_share is not None:
            raise SettingError("--dev_share is given, but there is a dev file; drop one of the two")
        return splits
    share = _DEV_SHARE if args.dev_share is None else args.dev_share
    if not 0.0 < share < 1.0:
        raise SettingError(f"--dev_share is {share}; legal: a share in (0, 1)")
    return hold_out_dev(splits["train"], share, args.seed, stratify=not args.regression) | {
        split: rows for split, rows in splits.items() if split != "train"
    }


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in next(csv.reader([text], skipinitialspace=True), [])]


def _described(task: ImportedTask) -> str:
    task_def = task.task_def
    kind = "scores" if task_def.labels is None else f"classes {_few(task_def.labels)}"
    metrics = ", ".join(task_def.metric_meta)
    of = f" (F1 is that of {task_def.labels[1]})" if task_def.labels and Metric.F1 in task_def.metric_meta else ""
    return f"task {task_def.name}, {kind}, metrics {metrics}{of}; judged by {task_def.primary_metric}"


def _about_labels(task: ImportedTask) -> list[str]:
    if task.task_def.task_type is TaskType.Regression:
        return []
    notes = []
    alike = Counter(name.casefold() for name in task.task_def.label_names)
    if twins := [name for name in task.task_def.label_names if alike[name.casefold()] > 1]:
        notes.append(f"classes that differ in case alone: {_few(twins)}")
    for split, rows in task.splits.items():
        counts = Counter(rows.labels)
        if once := [name for name in task.task_def.label_names if counts[name] == 1]:
            notes.append(f"{split}: {len(once)} labels occur once: {_few(once)}")
        unused = [name for name in task.task_def.label_names if not counts[name]]
        if unused and not split.endswith("test"):
            notes.append(f"{split}: {len(unused)} classes have no row: {_few(unused)}")
    return notes


def _about_lengths(task: ImportedTask, args: argparse.Namespace) -> list[str]:
    """Tell how many examples will be cut: exactly with a tokenizer, else at least those with more words than tokens."""
    if not 1 <= args.max_seq_len <= MAX_MAX_SEQ_LEN:
        raise SettingError(f"--max_seq_len is {args.max_seq_len}; legal: 1 to {MAX_MAX_SEQ_LEN}")
    notes = []
    tokenizer = None if args.tokenizer is None else load_tokenizer(args.tokenizer)
    for split, rows in task.splits.items():
        if tokenizer is not None:
            batch = (rows.texts[0], rows.texts[1] if task.task_def.pair else None)
            encoded = encode_batches(tokenizer, [batch], pair=task.task_def.pair, max_seq_len=args.max_seq_len)
            n, at_least = sum(one.truncated for one in encoded), ""
        else:
            words = (sum(len(text.split()) for text in example) for example in zip(*rows.texts, strict=True))
            n, at_least = sum(count + len(rows.texts) + 1 > args.max_seq_len for count in words), "at least "
        if n:
            notes.append(f"{split}: {at_least}{n} examples are beyond {args.max_seq_len} tokens and will be cut")
    return notes


def _few(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


if __name__ == "__main__":
    sys.exit(main())
