r"""A study on one page: a single HTML file that opens from disk, needs no network and prints.

    python -m experiments.study.report runs --study results/bert-base-uncased/study.json
    python -m experiments.study.report runs --study results/bert-base-uncased/study.json --watch
    python -m experiments.study.report demo/runs --tests examples --out demo.html

It has the tables with their differences and intervals, every seed as a dot, learning curves, tests, how each run
stands, and what the runs were set to, with whatever is not the same everywhere marked. Tables sort and filter; with
--watch the open page follows the study.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_utils.atomic import write_bytes_atomic
from data_utils.command_line import CommandParser, status_of
from data_utils.errors import SettingError
from experiments.study.table.which_runs import add_table_arguments

if TYPE_CHECKING:
    from experiments.study.report.page import Study
    from experiments.study.significance import Significance

_WATCH_SECONDS = 30.0
_LATER = "The tests come with the last page, when the study is over."
_SWITCHED_OFF = "Left out; python -m experiments.study.significance has them."


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        "python -m experiments.study.report",
        __doc__ or "",
        "\nExit status: 0 written (with --watch: the study is over), 2 a setting or file is wrong, 130 "
        "stopped by Ctrl-C or\nSIGTERM while watching; the page is whole then too.",
    )
    add_table_arguments(parser, "show its runs, those not started included, and no others")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the file; default: %(default)s")
    parser.add_argument(
        "--tests", choices=["seeds", "examples", "none"], default="seeds",
        help="tests over seeds, which take seconds; over dev examples too, which takes longer and reads the "
        "predictions; or none; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--watch", type=float, nargs="?", const=_WATCH_SECONDS, metavar="SECONDS",
        help=f"write it anew every so many seconds ({_WATCH_SECONDS:g}) until every run of --study has ended; without "
        "--study, which says what is still to come, until Ctrl-C",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    chosen = build_parser().parse_args(arguments)
    return status_of(lambda: _report(chosen))


def _report(chosen: argparse.Namespace) -> int:
    if chosen.watch is None:
        study = _read(chosen)
        if not study.views:
            raise SettingError(
                f"no runs under {chosen.runs}: give the output_dir of the runs, or --watch for their first"
            )
        _write(chosen, study, watching=False)
        return 0
    if not 1 <= chosen.watch <= 86_400:
        raise SettingError(f"--watch {chosen.watch:g}: give seconds in [1, 86400]; the default is 30")
    return _watch(chosen)


def _watch(chosen: argparse.Namespace) -> int:
    from experiments.study.report.watch import watch

    def write(stopped: bool) -> bool:
        study = _read(chosen)
        over = chosen.study is not None and study.over
        why = "" if over else _SWITCHED_OFF if stopped or chosen.tests == "none" else _LATER
        _write(chosen, study, watching=not (over or stopped), without_tests=why)
        return over

    return watch(write, chosen.watch, lambda text: print(text, file=sys.stderr))


def _read(chosen: argparse.Namespace) -> Study:
    from experiments.study.report.page import read_study

    return read_study(chosen.runs, chosen.study, chosen.run_id, time.time())


def _write(chosen: argparse.Namespace, study: Study, watching: bool, without_tests: str = "") -> None:
    from experiments.study.report.page import render

    found, why = (None, without_tests) if without_tests else _tests(chosen, study)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    page = render(study, found, chosen.watch if watching else None, why)
    write_bytes_atomic(chosen.out, page.encode(errors="replace"))  # a message may hold half a character
    counts = ", ".join(f"{n} {state}" for state, n in study.counts.items())
    print(f"{chosen.out}: {len(study.views)} runs ({counts or 'none'})", file=sys.stderr)


def _tests(chosen: argparse.Namespace, study: Study) -> tuple[Significance | None, str]:
    """The tests, or why there are none."""
    if chosen.tests == "none":
        return None, _SWITCHED_OFF
    from experiments.study.comparison.comparisons import pairs

    if not pairs(study.table):
        return None, "No two methods here are to be compared and have a seed in common."
    from experiments.study.significance import analyse

    return analyse(study.table, study.runs, examples=chosen.tests == "examples"), ""


if __name__ == "__main__":
    sys.exit(main())
