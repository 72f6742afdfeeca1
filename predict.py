"""Command line of predictions; see ``python predict.py --help``."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from data_utils.command_line import CommandParser, status_of
from data_utils.delimited_file import QUOTINGS, delimiter_of
from data_utils.errors import SettingError, shown
from data_utils.labelled_texts import ColumnNames
from data_utils.table_file import is_table, kind_of, read_table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from data_utils.task_def import TaskDef
    from data_utils.text_rows import TextRows
    from mt_dnn.trained.load import TrainedModel

_OF_TABLES = ("text", "text_pair", "label", "label_map", "skip_label", "delimiter", "quoting")
"""Options of --score for INPUTs that are no canonical files."""

_DESCRIPTION = """\
Score texts with a trained model: a run directory, or a folder that python -m mt_dnn.trained.export wrote.

  python predict.py runs/cola/.../seed=1 data/canonical_data/cola_dev.tsv       a canonical file
  echo "It is a film." | python predict.py exported/cola --columns premise      one sentence a line
  python predict.py exported/rte pairs.tsv --columns premise,hypothesis --format jsonl --out scores.jsonl
  python predict.py runs/rte/.../seed=1 --submission glue/                      RTE.tsv for the GLUE server
  python predict.py runs/cola/.../0a1b2c3d4e5f cola_train.tsv --ensemble --soft --out soft/cola_train.tsv
                                                  all its seeds as a teacher (docs/distillation.md)
  python predict.py runs/cola/.../seed=1 other.tsv --score                      every metric of a canonical file
  python predict.py exported/sst reviews.csv --score --text review --label mood --label_map neg=0,pos=1

Lines are tab-separated UTF-8 without quoting. Rows come out in the order they came in, in memory that does not grow
with their number; a run directory gives the logits that its evaluation gave.
Exit status: 0 done, 2 a setting or file is wrong."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    return status_of(lambda: _predict(options))


def _parser() -> CommandParser:
    parser = CommandParser("predict.py", _DESCRIPTION)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="run directory (.../seed=1) or exported folder")
    add("input", nargs="?", metavar="INPUT", help="file of rows; - or nothing: standard input")
    add("--columns", help="what the columns are, of uid,label,premise,hypothesis,- [the task's canonical file]")
    add("--skip_header", action="store_true", help="pass over the first line of INPUT")
    add("--format", choices=("tsv", "jsonl"), default="tsv", help="form of the output [%(default)s]")
    add("--out", type=Path, help="file to write, whole or not at all [standard output]")
    add("--submission", type=Path, metavar="DIR", help="write the GLUE files of the task's test sets to DIR instead")
    add("--data_dir", type=Path, help="canonical files for --submission [the run's; data/canonical_data]")
    add("--score", action="store_true", help="write the metrics of INPUT, a labelled file, instead of predictions")
    add("--text", metavar="COLUMN", help="with --score, of a table (as data_utils.import_dataset reads): its text")
    add("--text_pair", metavar="COLUMN", help="its second text")
    add("--label", metavar="COLUMN", help="its label, by the names that the task has")
    add("--label_map", metavar="A=B,...", help="label of the table=label of the task, where they differ")
    add("--skip_label", action="append", default=[], metavar="LABEL", help="leave out its rows; '': those without")
    add("--delimiter", help="between its columns, of a CSV or TSV file [comma or tab]")
    add("--quoting", choices=QUOTINGS, help="of a CSV or TSV file [auto]")
    add(
        "--ensemble",
        nargs="*",
        type=Path,
        metavar="MODEL",
        help="average MODEL with these; with none, if MODEL is a folder of runs seed=*, those",
    )
    add("--soft", action="store_true", help="write INPUT, a canonical file, with a column of soft labels: the logits")
    add("--epoch", choices=("best", "last"), help="weights of a run directory [best]")
    add("--task", help="whose head, of a run directory with several tasks")
    add("--task_def", type=Path, help="task definitions of a run directory [the run's own]")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index> [%(default)s]")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="[the run's; fp32 for an exported folder]")
    add("--eval_batch_tokens", type=int, default=8192, help="tokens of a batch [%(default)s]")
    return parser


def _predict(options: argparse.Namespace) -> None:
    if options.submission is not None:
        _refuse(options, "--submission reads the test sets of the task and writes its own files")
        _refuse_table_options(options, "goes with --score; drop it, or --submission")
        _write_submission(options)
    elif options.score:
        if options.soft:
            raise SettingError("--soft is given, but --score writes metrics; drop one of the two")
        _write_scores(options)
    elif options.soft:
        _refuse_table_options(options, "goes with --score; drop it, or --soft")
        _write_soft(options)
    else:
        _refuse_table_options(options, "goes with --score; add it")
        _write_predictions(options)


def _refuse_table_options(options: argparse.Namespace, reason: str) -> None:
    if given := [name for name in _OF_TABLES if getattr(options, name)]:
        raise SettingError(f"--{given[0]} {reason}")


def _refuse(options: argparse.Namespace, reason: str) -> None:
    defaults = {"input": None, "columns": None, "skip_header": False, "format": "tsv", "out": None, "score": False}
    defaults |= {"soft": False}
    for name, default in defaults.items():
        if getattr(options, name) != default:
            shown = "INPUT" if name == "input" else f"--{name}"
            raise SettingError(f"{shown} is given, but {reason}; drop one of the two")


def _load(options: argparse.Namespace) -> tuple[list[TrainedModel], Path]:
    """Load the models, of one task; returns them and the folder of the first one's canonical files."""
    from mt_dnn.trained.ensemble import check_alike

    paths = _paths(options)
    models, folders = zip(*(_load_one(path, options) for path in paths), strict=True)
    check_alike(models, paths)
    return list(models), folders[0]


def _paths(options: argparse.Namespace) -> list[Path]:
    if options.ensemble is None:
        return [options.model]
    given = [options.model, *options.ensemble]
    paths = list({path.resolve(): path for one in given for path in _seeds_in(one) or [one]}.values())
    if len(paths) < 2:
        raise SettingError(
            f"--ensemble: {options.model} holds {len(_seeds_in(options.model))} runs seed=*; give the folder above the "
            "seeds, or name the other models behind --ensemble"
        )
    return paths


def _seeds_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("seed=*") if path.is_dir())


def _load_one(path: Path, options: argparse.Namespace) -> tuple[TrainedModel, Path]:
    """Load a model; returns it and the folder of its canonical files."""
    from mt_dnn.encoder.files import quiet_transformers
    from mt_dnn.trained.load import TASK_DEF, load_exported, load_run, read_run

    with quiet_transformers():
        if (path / TASK_DEF).is_file():
            for name in ("epoch", "task_def"):
                if getattr(options, name) is not None:
                    raise SettingError(f"--{name} is for run directories, and {path} is an exported folder")
            exported = load_exported(path, options.device, options.precision)
            if options.task not in (None, exported.task_def.name):
                raise SettingError(f"--task {options.task}: {path} was exported for {exported.task_def.name} alone")
            return exported, options.data_dir or Path("data/canonical_data")
        if not path.is_dir():
            raise SettingError(f"MODEL {path} does not exist; give a run directory or an exported folder")
        run = read_run(path, options.task_def, options.task)
        model = load_run(run, options.epoch or "best", options.device, options.precision)
        return model, options.data_dir or run.config.data_dir


def _write_predictions(options: argparse.Namespace) -> None:
    from data_utils.text_rows import parse_columns

    if options.input in (None, "-") and sys.stdin.isatty():
        raise SettingError("INPUT is missing and standard input is a terminal; name a file or pipe rows in")
    if options.input not in (None, "-") and not Path(options.input).exists():
        raise SettingError(f"INPUT {options.input} does not exist; name a file of rows, or - for standard input")
    models, _ = _load(options)
    from mt_dnn.trained.prediction_lines import json_lines, tsv_header, tsv_lines  # after the refusals: it needs torch

    written = tsv_lines if options.format == "tsv" else json_lines
    task_def = models[0].task_def
    columns: Sequence[str] = parse_columns(options.columns, task_def) if options.columns else task_def.columns
    with _opened(options.input) as (file, name):
        lines = _lines(file, name, columns, task_def, options.skip_header)
        if not options.columns:
            columns, lines = _without_soft_label(lines, task_def)
        with _target(options.out) as target:
            header = tsv_header(task_def) if options.format == "tsv" else ""
            for rows, logits in _predicted(models, lines, name, columns, options):
                target.write((header + "".join(written(task_def, rows.uids, logits))).encode())
                target.flush()
                header = ""  # after the first rows: not in front of their refusal
            target.write(header.encode())


def _write_scores(options: argparse.Namespace) -> None:
    if options.input in (None, "-") or options.columns or options.skip_header:
        raise SettingError("--score reads a file, without --columns and --skip_header; name INPUT")
    path = Path(options.input)
    if not path.exists():
        raise SettingError(f"INPUT {path} does not exist; name a labelled file")
    if (options.text is None) is not (options.label is None):
        raise SettingError("--text and --label go together: the columns of a table; without both INPUT is canonical")
    if options.text is None:
        _refuse_table_options(options, "is for a table; give --text and --label too: its columns")
        if (kind := kind_of(path)) not in (".tsv", ".txt", "") and is_table(path):
            raise SettingError(f"INPUT {path}: a {kind} file is no canonical one; give --text and --label: its columns")
    models, _ = _load(options)
    task_def = models[0].task_def
    # After the refusals: these import torch.
    from mt_dnn.trained.scoring import canonical_rows, logits_on, parse_label_map, score, table_rows

    if options.text is None:
        labelled = canonical_rows(path, task_def)
    else:
        names = ColumnNames(options.text, options.label, options.text_pair)
        renamed = parse_label_map(options.label_map)
        table = read_table(path, delimiter_of(options.delimiter), options.quoting or "auto")
        labelled = table_rows(table, names, task_def, options.skip_label, renamed)
    print("".join(f"note: {note}\n" for note in labelled.notes), end="", file=sys.stderr)
    logits = logits_on(models, labelled, options.eval_batch_tokens, str(path))
    scores = score(task_def, logits, labelled.labels)
    n = len(labelled.labels)
    text = "".join(f"{name}\t{value:z.2f}\n" for name, value in scores.items())
    text = f"metric\tscore\n{text}n\t{n}\n"
    if options.format == "jsonl":
        text = json.dumps({"input": str(path), "n": n, "metrics": scores}) + "\n"
    with _target(options.out) as target:
        target.write(text.encode())


def _write_soft(options: argparse.Namespace) -> None:
    if options.input in (None, "-") or options.columns or options.skip_header or options.format != "tsv":
        raise SettingError("--soft reads and writes a canonical file, without --columns, --skip_header and --format")
    path = Path(options.input)
    if not path.exists():
        raise SettingError(f"INPUT {path} does not exist; name a canonical file, such as a training set")
    models, _ = _load(options)
    task_def = models[0].task_def
    if task_def.kd_loss is None:
        raise SettingError(f"--soft: the definition of task {task_def.name} has no kd_loss, which soft labels are for")
    from data_utils.soft_labels import lines_with_soft_labels
    from mt_dnn.trained.scoring import canonical_rows, logits_on

    rows = canonical_rows(path, task_def)
    logits = logits_on(models, rows, options.eval_batch_tokens, str(path))
    for uid, row in zip(rows.rows.uids, logits.tolist(), strict=True):
        if not all(map(math.isfinite, row)):
            raise SettingError(
                f"--soft: the logits of {path}'s uid {shown(uid)} are {row}, no soft label; use another teacher, "
                "--epoch or --precision fp32"
            )
    with _target(options.out) as target:
        target.writelines(line.encode() for line in lines_with_soft_labels(path, task_def, logits))


def _lines(
    file: BinaryIO, name: str, columns: Sequence[str], task_def: TaskDef, skip_header: bool
) -> Iterator[tuple[int, str]]:
    """Return the numbered lines of a file without its header.

    Raises:
        SettingError: the first is a header, and nobody said so.
    """
    from data_utils.canonical_tsv import decode_lines, watch_quotes, without_blank_end
    from data_utils.text_rows import looks_like_header

    lines = watch_quotes(name, decode_lines(file, name))
    if len(columns) > 1:  # an empty line of one column is an empty text
        lines = without_blank_end(lines)
    first = list(itertools.islice(lines, 1))
    if skip_header:
        return lines
    if first and looks_like_header(first[0][1], columns, task_def):
        told = f"{name}: line 1 ({shown(first[0][1])}) looks like a header"
        if len(columns) > 1:
            raise SettingError(f"{told}, not like a row of {', '.join(columns)}; pass over it with --skip_header")
        print(f"warning: {told} and is scored as a text; --skip_header passes over it", file=sys.stderr)
    return itertools.chain(first, lines)


def _without_soft_label(
    lines: Iterator[tuple[int, str]], task_def: TaskDef
) -> tuple[Sequence[str], Iterator[tuple[int, str]]]:
    """Return the columns of a canonical file, a soft label passed over, and its lines."""
    from data_utils.canonical_tsv import SOFT_LABEL, columns_of

    first = list(itertools.islice(lines, 1))
    columns = columns_of(first[0][1], task_def) if first else task_def.columns
    return ["-" if name == SOFT_LABEL else name for name in columns], itertools.chain(first, lines)


def _predicted(
    models: Sequence[TrainedModel],
    lines: Iterator[tuple[int, str]],
    name: str,
    columns: Sequence[str],
    options: argparse.Namespace,
) -> Iterator[tuple[TextRows, npt.NDArray[np.float32]]]:
    """Yield the rows of a file with their logits, piece by piece, under a progress bar."""
    from tqdm import tqdm

    from data_utils.text_rows import iterate_rows
    from mt_dnn.trained.ensemble import predict_together
    from mt_dnn.trained.prediction import PIECE

    with tqdm(desc=name, unit="row", disable=None, dynamic_ncols=True) as bar:
        pieces = iterate_rows(lines, name, columns, PIECE)
        for rows, logits in predict_together(models, pieces, options.eval_batch_tokens, name):
            yield rows, logits
            bar.update(len(rows.uids))


def _write_submission(options: argparse.Namespace) -> None:
    from experiments.glue.submission import FILES, HEADER, official_rows, submission_lines, test_sets

    models, data_dir = _load(options)
    task_def = models[0].task_def
    columns = task_def.columns
    for dataset, path in test_sets(task_def, data_dir).items():
        options.submission.mkdir(parents=True, exist_ok=True)
        out, n = options.submission / FILES[dataset], 0
        with path.open("rb") as file, _target(out) as target:
            lines = _lines(file, str(path), columns, task_def, skip_header=False)
            target.write(HEADER.encode())
            for rows, logits in _predicted(models, lines, str(path), columns, options):
                target.write("".join(submission_lines(task_def, dataset, rows.uids, logits)).encode())
                n += len(rows.uids)
        print(f"{out}: {n} rows")
        if n != official_rows(dataset):
            print(
                f"warning: {path} has {n} rows, the official file {official_rows(dataset)}; the server will refuse it",
                file=sys.stderr,
            )


@contextmanager
def _opened(path: str | None) -> Iterator[tuple[BinaryIO, str]]:
    if path in (None, "-"):
        yield sys.stdin.buffer, "standard input"
        return
    with Path(str(path)).open("rb") as file:
        yield file, str(path)


@contextmanager
def _target(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
        return
    from data_utils.atomic import open_atomic

    with open_atomic(path) as file:
        yield file


if __name__ == "__main__":
    sys.exit(main())
