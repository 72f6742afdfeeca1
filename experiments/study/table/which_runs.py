"""The runs that a command line names, and their table."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from data_utils.errors import SettingError, shown
from experiments.study.table.cells import Table
from experiments.study.table.gathering import gather, warn_unmatched
from experiments.study.table.wanted import Wanted


@dataclass(frozen=True, slots=True)
class Runs:
    """The choice of runs by ``runs``, ``--study`` and ``--run_id``."""

    folder: Path
    """``output_dir`` of the runs."""
    study: Path | None = None
    """``study.json`` of the study to show; None shows every run found."""
    run_ids: tuple[str, ...] = ()
    """To choose by where a cell has several."""

    @classmethod
    def of(cls, chosen: argparse.Namespace) -> Runs:
        """The runs of a command line with :func:`experiments.study.arguments.add_run_arguments`."""
        return cls(chosen.runs, chosen.study, tuple(chosen.run_id))

    def gather(self) -> Table:
        """Read the runs into a table, which has no cells if there are none.

        Raises:
            SettingError: as :func:`experiments.study.table.gathering.gather`, or a ``study.json`` that is none.
        """
        return gather(self.folder, Wanted.read(self.study) if self.study is not None else None, self.run_ids)

    def table(self) -> Table:
        """Read the runs into a table, with a warning of the study's cells that no run belongs to.

        Raises:
            SettingError: as :meth:`gather`, there are no runs, or none with a run id that was asked for.
        """
        table = self.gather()
        if not table.cells:
            raise SettingError(
                f"no runs under {self.folder}: give the output_dir of the runs, which has "
                "<task>/<encoder>/<method>/<run id>/seed=<seed>"
            )
        if gone := set(self.run_ids) - {cell.run_id for cell in table.cells.values()}:
            raise SettingError(f"--run_id {shown(min(gone))}: no run of the table has it; give one that a folder shows")
        warn_unmatched(table)
        return table
