"""AdvGLUE's dev set as canonical files, to score runs on (``--evaluate_on mnli:advglue_mnli``).

    python -m experiments.glue.advglue dev.json --out data/canonical_data
    python -m experiments.glue.advglue clones/adv_glue                      the Hub's copy, adv_sst2/validation-...

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
from data_utils.hub_folder import read_hub_folder
from data_utils.regular_file import read_regular
from data_utils.table_file import RawTable, table_of_rows
from data_utils.task_def import load_task_defs
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from experiments.glue.glue_readers import RawSplit
from experiments.glue.hub_copies import HUB_COPIES, read_copy

ROWS = {"sst2": 148, "qqp": 78, "mnli": 121, "mnli-mm": 162, "qnli": 148, "rte": 81}
"""Official number of rows."""
_TASKS = {"sst2": "sst", "mnli-mm": "mnli"}
_CONFIGS = {name: f"adv_{name}" for name in ROWS} | {"mnli-mm": "adv_mnli_mismatched"}
"""Its configurations on the Hub."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = CommandParser("python -m experiments.glue.advglue", __doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="dev.json of AdvGLUE, or the Hub's folder")
    parser.add_argument("--out", type=Path, default=Path("data/canonical_data"), help="[%(default)s]")
    args = parser.parse_args(arguments)
    return status_of(lambda: convert_advglue(args.file, args.out))


def convert_advglue(file: Path, out: Path) -> None:
    """Write the canonical files of a ``dev.json``, or of the Hub's folder.

    Raises:
        SettingError: it is none.
        OSError: a file cannot be read or written.
    """
    definitions = load_task_defs(GLUE_TASK_DEF)
    splits: dict[str, RawSplit] = {}
    for name, table in (_of_folder(file) if file.is_dir() else _of_json(file)).items():
        task = _TASKS.get(name, name)
        columns = {key: values for key, values in table.columns.items() if key != "idx"}  # several rows have one
        table = replace(table, columns=columns, class_names={"label": HUB_COPIES[task].classes} | table.class_names)
        splits[name] = read_copy([table], definitions[task], "matched_dev" if task == "mnli" else "dev")
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        path = out / f"advglue_{'sst' if name == 'sst2' else name}_dev.tsv"
        write_canonical(path, rows.uids, rows.labels, *rows.sentences)
        print(f"{path}: {len(rows)} rows")
        if len(rows) != ROWS[name]:
            print(f"warning: {file}: {len(rows)} rows of {name}, the official file has {ROWS[name]}", file=sys.stderr)


def _of_json(file: Path) -> dict[str, RawTable]:
    try:
        content = json.loads(read_regular(file))
    except ValueError as error:
        raise SettingError(f"{file}: not JSON: {in_one_line(error)}") from None
    there = [name for name in ROWS if isinstance(content, dict) and content.get(name)]
    if not there:
        raise SettingError(f"{file}: not AdvGLUE's dev.json, which has lists of rows for {', '.join(ROWS)}")
    return {name: table_of_rows(file / name, content[name]) for name in there}


def _of_folder(folder: Path) -> dict[str, RawTable]:
    there = {name: config for name, config in _CONFIGS.items() if (folder / config).is_dir()}
    found = {name: tables[0] for name, c in there.items() if (tables := read_hub_folder(folder, c).get("dev"))}
    if not found:
        raise SettingError(f"{folder}: no validation file of {', '.join(_CONFIGS.values())}, AdvGLUE's folders")
    return found


if __name__ == "__main__":
    sys.exit(main())
