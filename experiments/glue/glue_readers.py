"""Raw GLUE files of nine tasks, one way of reading them all.

Columns are found by their header (CoLA's train and dev have none). Text is kept as MT-DNN keeps it: white space is cut
off at both ends of a line and nowhere else, quotes are literal, labels stay texts.
"""

import gzip
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from data_utils.canonical_tsv import decode_lines, iterate_lines, label_value, without_blank_end
from data_utils.errors import SettingError, in_one_line, shown
from data_utils.task_def import TaskDef


@dataclass(frozen=True, slots=True)
class SplitSource:
    """A split's raw file and its columns."""

    file: str
    """File name in the task's folder."""
    rows: int
    """Official number of rows, without those that GLUE practice skips."""
    columns: tuple[str, ...]
    """Header names of the sentence or sentences, then of the label; no label in test splits."""
    uid: str | None = None
    """Header name of the row's name; None numbers the rows from 0, as MT-DNN does."""

    def labelled(self, task: "TaskSource") -> bool:
        """Whether the split has labels."""
        return len(self.columns) > task.sentences


@dataclass(frozen=True, slots=True)
class TaskSource:
    """A GLUE task's raw files."""

    folder: str
    sentences: int
    """1 or 2"""
    splits: dict[str, SplitSource]
    headerless: tuple[str, ...] = ()
    """Column names of train and dev, where the files do not have them."""
    skip_short: int = 0
    """Labelled rows with fewer columns are skipped and counted (QQP)."""
    skip_label: str | None = None
    """Rows with this label are skipped and counted (MNLI: annotators did not agree)."""


def _splits(
    rows: tuple[int, int, int], sentences: tuple[str, ...], label: str, uids: tuple[str | None, str | None]
) -> dict[str, SplitSource]:
    """Return train, dev and test of a task; ``uids`` names the uid column of labelled and of test files."""
    labelled, unlabelled = (*sentences, label), sentences
    return {
        "train": SplitSource("train.tsv", rows[0], labelled, uids[0]),
        "dev": SplitSource("dev.tsv", rows[1], labelled, uids[0]),
        "test": SplitSource("test.tsv", rows[2], unlabelled, uids[1]),
    }


_PAIR = ("sentence1", "sentence2")
_MNLI = (*_PAIR, "gold_label")
_NUMBERED = (None, None)
# Row counts: the GLUE paper and the files behind scripts/download_glue.sh.
TASKS: dict[str, TaskSource] = {
    "cola": TaskSource(
        "CoLA",
        1,
        _splits((8_551, 1_043, 1_063), ("sentence",), "label", _NUMBERED),
        headerless=("source", "label", "mark", "sentence"),
    ),
    "mnli": TaskSource(
        "MNLI",
        2,
        {
            "train": SplitSource("train.tsv", 392_702, _MNLI, "index"),
            "matched_dev": SplitSource("dev_matched.tsv", 9_815, _MNLI, "index"),
            "mismatched_dev": SplitSource("dev_mismatched.tsv", 9_832, _MNLI, "index"),
            "matched_test": SplitSource("test_matched.tsv", 9_796, _PAIR, "index"),
            "mismatched_test": SplitSource("test_mismatched.tsv", 9_847, _PAIR, "index"),
        },
        skip_label="-",
    ),
    "mrpc": TaskSource("MRPC", 2, _splits((3_668, 408, 1_725), ("#1 String", "#2 String"), "Quality", _NUMBERED)),
    "qnli": TaskSource(
        "QNLI",
        2,
        _splits((104_743, 5_463, 5_463), ("question", "sentence"), "label", ("index", "index")),
    ),
    "qqp": TaskSource(
        "QQP",
        2,
        _splits((363_846, 40_430, 390_965), ("question1", "question2"), "is_duplicate", (None, "id")),
        skip_short=6,
    ),
    "rte": TaskSource("RTE", 2, _splits((2_490, 277, 3_000), _PAIR, "label", ("index", "index"))),
    "sst": TaskSource("SST-2", 1, _splits((67_349, 872, 1_821), ("sentence",), "label", (None, "index"))),
    "stsb": TaskSource("STS-B", 2, _splits((5_749, 1_500, 1_379), _PAIR, "score", _NUMBERED)),
    "wnli": TaskSource("WNLI", 2, _splits((635, 71, 146), _PAIR, "label", _NUMBERED)),
}

IMPORTER = "any other table: python -m data_utils.import_dataset"
_QNLI_V1 = frozenset({108_436, 5_732, 5_740})

MSR_FILES = {"train": "msr_paraphrase_train.txt", "test": "msr_paraphrase_test.txt"}
"""The corpus behind MRPC as it is distributed; its training file holds GLUE's train and dev."""
MSR_DEV_IDS = ("dev_ids.tsv", "mrpc_dev_ids.tsv")


@dataclass(slots=True)
class RawSplit:
    """A split's rows as they go into a canonical file, with counts of changed and skipped rows."""

    uids: list[str]
    labels: list[str]
    sentences: tuple[list[str], ...]
    """One or two columns."""
    skipped: int = 0
    """Rows left out as GLUE practice leaves them out."""
    carriage_returns: int = 0
    """Lines with a CR inside, which became a space: a canonical file cannot hold it."""

    def __len__(self) -> int:
        return len(self.uids)


def read_split(path: str | Path, task_def: TaskDef, split: str) -> RawSplit:
    """Read one raw file.

    Args:
        path: the file; UTF-8 with or without BOM, LF or CRLF.
        task_def: a task of `TASKS`, with its labels.
        split: one of the task's splits.

    Raises:
        SettingError: a header without the columns needed, or a malformed row; names file, line and reason.
        OSError: the file cannot be read.
    """
    task = TASKS[task_def.name]
    source = task.splits[split]
    lines = without_blank_end(_lines(Path(path)))
    first = next(lines, (1, ""))
    header = _header(first[1])
    if task.headerless and source.labelled(task) and not set(source.columns) <= set(header):
        lines, header = itertools.chain([first], lines), list(task.headerless)
    return _read_rows(path, lines, header, task_def, source)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a raw file, also under gzip."""
    if path.suffix != ".gz":
        yield from iterate_lines(path)
        return
    try:
        with gzip.open(path) as file:
            yield from decode_lines(cast(BinaryIO, file), path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SettingError(f"{path}: damaged or cut off ({in_one_line(error)}); fetch it again") from None


def check_version(task: str, file: str, rows: int) -> None:
    """Refuse the first QNLI by the number of its rows.

    Raises:
        SettingError: it is; names the cure.
    """
    if task == "qnli" and rows in _QNLI_V1:
        raise SettingError(
            f"QNLI/{file}: {rows:,} rows: this is QNLI v1, which GLUE replaced by v2 with other splits, so its scores "
            "are not comparable: fetch v2 with scripts/download_glue.sh --tasks qnli"
        )


def read_msr_paraphrase(folder: str | Path, task_def: TaskDef) -> dict[str, RawSplit]:
    """Make MRPC's train and dev of the corpus's own training file and GLUE's list of dev pairs.

    Args:
        folder: holds ``msr_paraphrase_train.txt`` and ``dev_ids.tsv`` (or ``mrpc_dev_ids.tsv``).
        task_def: mrpc.

    Raises:
        SettingError: a malformed row, or dev pairs that the training file does not hold.
        OSError: a file is missing.
    """
    path = Path(folder) / MSR_FILES["train"]
    ids_path = next((file for file in map(Path(folder).joinpath, MSR_DEV_IDS) if file.is_file()), None)
    if ids_path is None:
        raise SettingError(f"{path}: needs {MSR_DEV_IDS[0]} beside it: the list of GLUE's dev pairs")
    wanted = {tuple(line.strip().split("\t")) for _, line in without_blank_end(iterate_lines(ids_path))}
    lines = without_blank_end(iterate_lines(path))
    header = _header(next(lines, (1, ""))[1])
    if header[1:3] != ["#1 ID", "#2 ID"]:
        raise SettingError(f"{path}: line 1: columns 2 and 3 must be '#1 ID' and '#2 ID', found {', '.join(header)}")
    parts: dict[str, list[tuple[int, str]]] = {"train": [], "dev": []}
    found = set()
    for number, line in lines:
        pair = tuple(line.split("\t")[1:3])
        if pair in wanted:
            found.add(pair)
        parts["dev" if pair in wanted else "train"].append((number, line))
    if found != wanted:
        raise SettingError(f"{ids_path}: {len(wanted - found)} of its {len(wanted)} pairs are not in {path.name}")
    splits = TASKS[task_def.name].splits
    return {split: _read_rows(path, iter(part), header, task_def, splits[split]) for split, part in parts.items()}


def _read_rows(
    path: str | Path, lines: Iterator[tuple[int, str]], header: list[str], task_def: TaskDef, source: SplitSource
) -> RawSplit:
    task = TASKS[task_def.name]
    labelled = source.labelled(task)
    wanted = (*source.columns, *([source.uid] if source.uid else []))
    missing = [name for name in wanted if name not in header]
    if missing:
        raise SettingError(
            f"{path}: line 1: no column {shown(missing[0])}; {task.folder} needs {', '.join(wanted)}; "
            f"found {shown(', '.join(header))}{_no_tab(header)}"
        )
    texts = [header.index(name) for name in source.columns[: task.sentences]]
    label_at = header.index(source.columns[-1])
    uid_at = header.index(source.uid) if source.uid else None
    result = RawSplit([], [], tuple([] for _ in texts))
    for number, line in lines:
        row = line.split("\t")
        if labelled and len(row) < task.skip_short:
            result.skipped += 1
            continue
        if len(row) != len(header):
            remedy = "a sentence holds no tab" if len(row) > len(header) else f"the row is cut off{_no_tab(row)}"
            raise SettingError(f"{path}: line {number}: {len(row)} columns instead of {len(header)}; {remedy}")
        row[0], row[-1] = row[0].lstrip(), row[-1].rstrip()  # MT-DNN strips each line
        label = row[label_at] if labelled else task_def.dummy_label
        if labelled and label == task.skip_label:
            result.skipped += 1
            continue
        try:
            label_value(label, task_def)
        except SettingError as error:
            raise SettingError(f"{path}: line {number}: {error}") from None
        result.carriage_returns += "\r" in line
        result.uids.append(str(len(result)) if uid_at is None else row[uid_at])
        result.labels.append(label)
        for column, at in zip(result.sentences, texts, strict=True):
            column.append(row[at].replace("\r", " "))
    if not result.uids:
        raise SettingError(f"{path}: holds no rows")
    return result


def _no_tab(row: list[str]) -> str:
    return "" if len(row) > 1 else f", or no tab-separated file; {IMPORTER}"


def _header(line: str) -> list[str]:
    return [name.strip() for name in line.split("\t")]
