"""Table 1 from the runs, finished or not.

    python -m experiments.study.tables runs --study results/bert-base-uncased/study.json
    python -m experiments.study.tables runs --out results/all

Prints the Markdown and, with --out, writes ``table.md``, ``table.tex``, ``table.csv`` (a line per cell) and
``table_seeds.csv`` (a line per run). Every table says on which split, by which metric and selection rule and over how
many seeds its numbers stand. Runs that collapsed to one class or diverged count like any other and are named under the
table; a failed run is missing. A run without any score makes its cell NaN: it is not left out of the mean. With
``--step_times`` a last column has what a method's step costs, over plain fine-tuning's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_utils.command_line import CommandParser, status_of
from data_utils.errors import SettingError
from data_utils.json_file import read_json
from experiments.study.arguments import add_run_arguments
from experiments.study.fields import Fields
from experiments.study.table.cells import Table
from experiments.study.table.cells_csv import cells_csv, seeds_csv
from experiments.study.table.latex import latex
from experiments.study.table.markdown import markdown
from experiments.study.table.paper import load_paper
from experiments.study.table.which_runs import Runs
from experiments.study.texts import write_texts


def write_tables(table: Table, out: Path) -> list[Path]:
    """Write the table into a folder in every format; returns the files, Markdown first."""
    paper = load_paper(table.benchmark)
    texts = {
        "table.md": markdown(table, paper),
        "table.tex": latex(table, paper),
        "table.csv": cells_csv(table, paper),
        "table_seeds.csv": seeds_csv(table),
    }
    return write_texts(out, texts)


def read_step_times(path: Path) -> dict[str, float]:
    """Method -> median time of its step over plain fine-tuning's, from a result of ``benchmarks.methods``.

    Raises:
        SettingError: the file is no such result, or cannot be read.
    """
    try:
        costs = Fields(read_json(path), f"--step_times {path}").mapping("methods")
    except FileNotFoundError:
        raise SettingError(f"--step_times: no file {path}; give a result of python -m benchmarks.methods") from None
    factors = {method: costs.mapping(method).mapping("time_factor").number("median") for method in costs.values}
    return {"vanilla": 1.0} | factors


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 for a wrong setting or file."""
    parser = CommandParser("python -m experiments.study.tables", __doc__)
    add_run_arguments(parser, "show its cells, missing ones included, and no others")
    parser.add_argument(
        "--step_times", type=Path, help="result of python -m benchmarks.methods, for the column step time"
    )
    parser.add_argument("--out", type=Path, help="folder for the files; default: print the Markdown only")
    chosen = parser.parse_args(arguments)
    return status_of(lambda: _tell(chosen))


def _tell(chosen: argparse.Namespace) -> None:
    table = Runs.of(chosen).table()
    if chosen.step_times is not None:
        table = replace(table, step_times=read_step_times(chosen.step_times))
    print(markdown(table, load_paper(table.benchmark)), end="")
    for path in write_tables(table, chosen.out) if chosen.out else []:
        print(path, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
