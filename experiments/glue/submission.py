"""Files for the GLUE server: official names, ``index`` and ``prediction``, the labels' own words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_utils.errors import SettingError, shown
from data_utils.task_def import TaskDef, TaskType
from experiments.glue.glue_readers import TASKS

FILES = {
    "cola_test": "CoLA.tsv",
    "mnli_matched_test": "MNLI-m.tsv",
    "mnli_mismatched_test": "MNLI-mm.tsv",
    "mrpc_test": "MRPC.tsv",
    "qnli_test": "QNLI.tsv",
    "qqp_test": "QQP.tsv",
    "rte_test": "RTE.tsv",
    "sst_test": "SST-2.tsv",
    "stsb_test": "STS-B.tsv",
    "wnli_test": "WNLI.tsv",
}
"""Test set -> file; the server wants AX.tsv too, predictions of an MNLI model on a diagnostic set that is not here."""
HEADER = "index\tprediction\n"
_LOWEST, _HIGHEST = 0.0, 5.0  # STS-B's scale


def test_sets(task_def: TaskDef, data_dir: Path) -> dict[str, Path]:
    """Return the canonical test files of a task by name.

    Raises:
        SettingError: no task of GLUE, or a file that is missing.
    """
    sets = [name for split in task_def.split_names if (name := task_def.dataset_name(split)) in FILES]
    if not sets:
        raise SettingError(f"--submission: {task_def.name} is no task of GLUE; the tasks are {', '.join(TASKS)}")
    paths = {name: data_dir / f"{name}.tsv" for name in sets}
    for path in paths.values():
        if not path.is_file():
            raise SettingError(
                f"--submission: {path} does not exist; make it with experiments/glue/glue_prepro.py, or give --data_dir"
            )
    return paths


def official_rows(dataset: str) -> int:
    """Rows of a test set as GLUE distributes it."""
    task, _, split = dataset.partition("_")
    return TASKS[task].splits[split].rows


def submission_lines(
    task_def: TaskDef, dataset: str, uids: list[str], logits: npt.NDArray[np.float32]
) -> Iterator[str]:
    """Yield a line per row; scores of STS-B are cut to [0, 5] and have three decimals.

    Raises:
        SettingError: a row without a number for its uid, which the server would not know.
    """
    for uid, row in zip(uids, logits, strict=True):
        if not (uid.isascii() and uid.isdecimal()):
            raise SettingError(
                f"--submission: {dataset}: uid {shown(uid)} is no number; glue_prepro.py makes test files"
            )
        if task_def.task_type is TaskType.Regression:
            yield f"{uid}\t{np.clip(row[0], _LOWEST, _HIGHEST):.3f}\n"
        else:
            yield f"{uid}\t{task_def.label_names[int(row.argmax())]}\n"
