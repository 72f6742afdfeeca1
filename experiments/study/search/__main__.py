"""Tables 2 and 3 from a search: ``python -m experiments.study.search results/NAME/search.json``.

Writes, beside the file or in --out: ``table2`` (best learning rate per task and method) and ``table3`` (ranges, and the
values chosen) as Markdown, LaTeX and CSV, ``trials.csv``, the chosen settings as ``recipes/*.yml``, and the pictures.
Nothing is run; an unfinished search gives the tables of what is there.

Exit status: 0 every trial is over, 1 some are missing, 2 a file is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data_utils.command_line import CommandParser, status_of
from experiments.study.search.search_tables import conclude
from experiments.study.search.trials import read_search


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = CommandParser("python -m experiments.study.search", __doc__)
    parser.add_argument("search_json", type=Path, help="search.json of a search, finished or not")
    parser.add_argument("--runs", type=Path, help="folder of the runs; default: the search's --output_dir")
    parser.add_argument("--out", type=Path, help="folder for the files; default: that of search.json")
    chosen = parser.parse_args(arguments)
    return status_of(
        lambda: conclude(read_search(chosen.search_json, chosen.runs), chosen.out or chosen.search_json.parent)
    )


if __name__ == "__main__":
    sys.exit(main())
