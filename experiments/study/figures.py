"""Pictures of a table: the score of every seed as a dot, and learning curves.

    python -m experiments.study.figures runs/ [--study study.json] --out DIR

Writes ``strip.png`` and ``strip.pdf``, whose numbers are those of ``table_seeds.csv``, and with ``--curves``
``curves.png``, ``curves.pdf`` and ``curves.csv``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_utils.command_line import CommandParser, status_of
from experiments.study.drawing.curves import learning_curves
from experiments.study.drawing.seed_strips import seed_strips
from experiments.study.table.which_runs import add_table_arguments, read_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 for a wrong setting or file."""
    parser = CommandParser("python -m experiments.study.figures", __doc__)
    add_table_arguments(parser, "show its cells and no others")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--curves", action="store_true", help="learning curves too")
    chosen = parser.parse_args(arguments)
    return status_of(lambda: _draw(chosen))


def _draw(chosen: argparse.Namespace) -> None:
    table = read_table(chosen)
    files = seed_strips(table, chosen.out / "strip")
    files += learning_curves(table, chosen.runs, chosen.out / "curves") if chosen.curves else []
    print("\n".join(map(str, files)))


if __name__ == "__main__":
    sys.exit(main())
