"""The lines of a run's ``metrics.jsonl``, which may be read while it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError

_NUMBERS = ("step", "epoch", "loss", "score", "held_out")


def read_records(metrics_jsonl: Path, strict: bool = True) -> list[dict[str, Any]]:
    """Read the records; empty when there is no such file.

    A last line that is not whole is left out: it is being written, or was cut by a kill or a full disk.

    Args:
        metrics_jsonl: The file.
        strict: Whether any other line that is no record is refused; else it is left out.

    Returns:
        The records. Each has a step and an epoch, an evaluation a score; these, loss and scores are numbers.

    Raises:
        SettingError: such a line, or a file that cannot be read.
    """
    try:
        if not metrics_jsonl.is_file():
            return []
        lines = metrics_jsonl.read_bytes().split(b"\n")
    except OSError as error:
        raise SettingError(f"{metrics_jsonl} cannot be read: {error.strerror or error}") from None
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # the rest behind the last line end is no whole line
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and _is_sound(record):
            records.append(record)
        elif strict:
            raise SettingError(
                f"{metrics_jsonl} is damaged: line {number} is no record; delete {metrics_jsonl.parent} to run again"
            )
    return records


def _is_sound(record: Mapping[str, Any]) -> bool:
    numbers = [record[key] for key in _NUMBERS if key in record]
    needed = {"step", "epoch", "score"} if "evaluation" in record else {"step", "epoch"}
    return needed <= record.keys() and all(
        type(value) is float or (type(value) is int and abs(value) < 2**63) for value in numbers
    )
