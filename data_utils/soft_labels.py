r"""Soft labels: a second label column of a canonical training file, for distillation.

``uid \t label \t soft label \t premise [\t hypothesis]``: K numbers with spaces between them, the teacher's logits.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_utils.canonical_tsv import columns_of, iterate_canonical, iterate_lines, without_blank_end
from data_utils.task_def import TaskDef

_PIECE = 4096  # rows in memory as text at a time


def read_soft_labels(tsv: Path, task_def: TaskDef) -> NDArray[np.float32] | None:
    """(N, K) soft labels of a canonical file; None where it has no such column.

    Raises:
        SettingError: a malformed row.
        OSError: the file cannot be read.
    """
    pieces = []
    for rows in iterate_canonical(tsv, task_def, _PIECE):
        if rows.soft_labels is None:
            return None
        pieces.append(rows.soft_labels)
    return np.concatenate(pieces)


def soft_text(values: Sequence[float] | NDArray[np.float32]) -> str:
    """Write the soft label of a row; it is read back to the same float32 numbers."""
    return " ".join(f"{float(value):.9g}" for value in values)


def lines_with_soft_labels(tsv: Path, task_def: TaskDef, logits: NDArray[np.float32]) -> Iterator[str]:
    """Yield the lines of a canonical file with soft labels, in the place of those that it may have.

    Args:
        tsv: The file; it has rows.
        task_def: Its task, with a kd_loss.
        logits: (N, K) of its rows.
    """
    lines = [line for _, line in without_blank_end(iterate_lines(tsv))]
    older = len(columns_of(lines[0], task_def)) - len(task_def.columns)  # 1 where it has soft labels already
    for line, row in zip(lines, logits, strict=True):
        uid, label, *texts = line.split("\t")
        yield "\t".join([uid, label, soft_text(row), *texts[older:]]) + "\n"
