"""AdvGLUE's dev set as canonical files, to score runs on (``--evaluate_on mnli:advglue_mnli``).

    python -m experiments.glue.advglue dev.json --out data/canonical_data

writes ``advglue_<task>_dev.tsv`` of each task in the file: sst, qqp, mnli, mnli-mm (``advglue_mnli-mm``), qnli and rte.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_utils.canonical_tsv import write_canonical
from data_utils.command_line import CommandParser, status_of
from data_utils.errors import SettingError, in_one_line
from data_utils.regular_file import read_regular
from data_utils.table_file import table_of_rows
from data_utils.task_def import load_task_defs
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from experiments.glue.glue_readers import RawSplit
from experiments.glue.hub_copies import HUB_COPIES, read_copy

ROWS = {"sst2": 148, "qqp": 78, "mnli": 121, "mnli-mm": 162, "qnli": 148, "rte": 81}
"""Official number of rows."""
_TASKS = {"sst2": "sst", "mnli-mm": "mnli"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = CommandParser("python -m experiments.glue.advglue", __doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="dev.json of AdvGLUE")
    parser.add_argument("--out", type=Path, default=Path("data/canonical_data"), help="[%(default)s]")
    args = parser.parse_args(arguments)
    return status_of(lambda: convert_advglue(args.file, args.out))


def convert_advglue(file: Path, out: Path) -> None:
    """Write the canonical files of a ``dev.json``.

    Raises:
        SettingError: it is no such file.
        OSError: a file cannot be read or written.
    """
    try:
        content = json.loads(read_regular(file))
    except ValueError as error:
        raise SettingError(f"{file}: not JSON: {in_one_line(error)}") from None
    there = [name for name in ROWS if isinstance(content, dict) and content.get(name)]
    if not there:
        raise SettingError(f"{file}: not AdvGLUE's dev.json, which has lists of rows for {', '.join(ROWS)}")
    definitions = load_task_defs(GLUE_TASK_DEF)
    splits: dict[str, RawSplit] = {}
    for name in there:
        task = _TASKS.get(name, name)
        table = table_of_rows(file / name, content[name])
        columns = {key: values for key, values in table.columns.items() if key != "idx"}  # several rows have one
        table = replace(table, columns=columns, class_names={"label": HUB_COPIES[task].classes})
        splits[name] = read_copy([table], definitions[task], "matched_dev" if task == "mnli" else "dev")
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        path = out / f"advglue_{'sst' if name == 'sst2' else name}_dev.tsv"
        write_canonical(path, rows.uids, rows.labels, *rows.sentences)
        print(f"{path}: {len(rows)} rows")
        if len(rows) != ROWS[name]:
            print(f"warning: {file}: {len(rows)} rows of {name}, the official file has {ROWS[name]}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
