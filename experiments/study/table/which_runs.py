"""The arguments by which commands name the runs of a table, and that table."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_utils.errors import SettingError
from experiments.study.table.cells import Table, gather, warn_unmatched
from experiments.study.table.wanted import Wanted


def add_table_arguments(parser: argparse.ArgumentParser, study: str) -> None:
    """Add ``runs``, ``--study`` and ``--run_id``.

    Args:
        parser: The command's.
        study: What the command does with a study's cells.
    """
    parser.add_argument("runs", type=Path, help="output_dir of the runs")
    parser.add_argument("--study", type=Path, help=f"study.json: {study}")
    parser.add_argument("--run_id", action="append", default=[], help="run id to take where a cell has several")


def read_table(chosen: argparse.Namespace) -> Table:
    """Read the runs that a command names.

    Raises:
        SettingError: as :func:`gather`, or there are no runs.
    """
    table = gather(chosen.runs, Wanted.read(chosen.study) if chosen.study else None, chosen.run_id)
    if not table.cells:
        raise SettingError(
            f"no runs under {chosen.runs}: give the output_dir of the runs, which has "
            "<task>/<encoder>/<method>/<run id>/seed=<seed>"
        )
    warn_unmatched(table)
    return table
