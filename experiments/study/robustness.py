r"""Calibration, spread of seeds and scores on parts of a dev set: what a method may buy beside the score.

    python -m experiments.study.robustness runs --study results/bert-base-uncased/study.json --out results/robustness
    python -m experiments.study.robustness runs --parts cola_dev=data/cola_domains.tsv

From the predictions that runs keep, for the best and the last epoch; nothing is trained and no weights are needed.
    calibration   of classifiers: expected calibration error (15 bins), negative log-likelihood, Brier score
    spread        standard deviation of the seeds' scores over the baseline's, with its 95 % interval
    parts         the task's metric on each part of a dev set: a file with uid <tab> part for each of its rows, such
                  as python -m experiments.glue.cola_domains writes
Each method against its control, or plain fine-tuning, over the seeds that both have. docs/statistics.md has the
definitions.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_utils.command_line import CommandParser, status_of
from data_utils.errors import SettingError
from data_utils.task_def import Metric
from experiments.study.arguments import add_run_arguments
from experiments.study.comparison.comparisons import AVERAGE, Pair, pairs, together_and_alone
from experiments.study.comparison.quantities import (
    DevParts,
    Quantity,
    calibration_quantities,
    measured,
    part_quantities,
)
from experiments.study.statistics.difference import Difference
from experiments.study.statistics.intervals import Interval
from experiments.study.statistics.paired_tests import sign_flip
from experiments.study.statistics.spread import SpreadRatio, spread_ratio
from experiments.study.table.cells import SELECTIONS, Cell, Selection, Table, chosen_held_out
from experiments.study.table.markdown import has_deviation, markdown_table
from experiments.study.table.titles import method_title, metric_title, selection_title, task_title
from experiments.study.table.which_runs import Runs
from experiments.study.texts import csv_text, number_text, write_texts

LEGEND = """\
Mean ± sample standard deviation over n seeds: of the score all, of the other columns those that kept their predictions.
Below it, method minus baseline over the n seeds that both have, with Student's 95 % interval. ECE (expected calibration
error), NLL and Brier are errors: small is good. The spread ratio is the standard deviation of the method's scores over
the baseline's, with the 95 % interval of Pitman and Morgan; below 1 the method's seeds differ less. No interval is
corrected for the number of comparisons, and none counts the luck of the dev examples.
"""


@dataclass(frozen=True, slots=True)
class Robustness:
    """All quantities of a table, and the pairs that are compared."""

    table: Table
    quantities: tuple[Quantity, ...]
    by_quantity: Mapping[str, Table]
    pairs: tuple[Pair, ...]

    def measured_on(self, encoder: str, task: str) -> list[Quantity]:
        """The quantities that a run of a task on an encoder has."""
        keys = [(encoder, method, task) for method in self.table.rows_of(encoder)]
        return [q for q in self.quantities if any(key in self.by_quantity[q.name].cells for key in keys)]

    def difference(self, quantity: Quantity, pair: Pair) -> Difference | None:
        """A quantity of the method minus that of its baseline."""
        table = self.by_quantity[quantity.name]
        return table.minus(pair.encoder, pair.method, pair.baseline, pair.task, pair.selection)

    def spread(self, pair: Pair) -> SpreadRatio:
        """The spread of the method's scores over its baseline's, over the seeds that both have."""
        ours, theirs = (
            self.table.cells[pair.encoder, method, pair.task].scores(pair.selection)
            for method in (pair.method, pair.baseline)
        )
        both = [seed for seed in ours if seed in theirs]
        return spread_ratio([ours[seed] for seed in both], [theirs[seed] for seed in both])


def analyse(
    table: Table,
    runs: Path,
    parts: Iterable[DevParts] = (),
    baseline: str | None = None,
    together: bool = False,
) -> Robustness:
    """Measure every quantity of a table's runs.

    Args:
        table: As :func:`experiments.study.table.gathering.gather` reads it.
        runs: ``output_dir`` of its runs, where the predictions lie.
        parts: Divisions of dev sets.
        baseline: One method for all; default: each one's control where the table has it, else plain fine-tuning.
        together: Whether to compare runs with several tasks with those that train each task alone.

    Raises:
        SettingError: nothing to measure, an unknown baseline, parts of other rows or of one name, or damaged
            predictions.
    """
    parts, against = tuple(parts), None
    if together:
        table, against = together_and_alone(table)
        if not against:
            raise SettingError("--together: no task was trained both alone and in a run with several; drop it")
    quantities = (*calibration_quantities(), *(one for each in parts for one in part_quantities(each)))
    names = [one.name for one in quantities]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SettingError(f"--parts: {twice[0]} is there twice; give each part of a dev set a name of its own")
    by_quantity = measured(table, runs, quantities)
    compared = [p for p in pairs(table, baseline, against=against) if p.task != AVERAGE]
    scored = tuple(p for p in compared if table.metric(p.task) in list(Metric))
    if not scored and not any(found.cells for found in by_quantity.values()):
        raise SettingError(
            f"no run under {runs} has predictions of a classification task or of the sets in --parts; give the "
            "output_dir of runs whose predictions.npz was kept"
        )
    for each in parts:
        if not by_quantity[part_quantities(each)[0].name].cells:
            raise SettingError(f"--parts: no run was scored on {each.dataset}; legal: a dev set of the table's tasks")
    return Robustness(table, quantities, by_quantity, scored)


def write_robustness(found: Robustness, out: Path) -> list[Path]:
    """Write ``robustness.md``, ``.csv``, ``_seeds.csv`` and ``_spread.csv`` into a folder, made if missing."""
    texts = {
        "robustness.md": markdown(found),
        "robustness.csv": csv_text(_rows(found)),
        "robustness_seeds.csv": csv_text(_seed_rows(found)),
        "robustness_spread.csv": csv_text(_spread_rows(found)),
    }
    return write_texts(out, texts)


def markdown(found: Robustness) -> str:
    """A section per encoder, task and epoch: the quantities, then the differences and the spread."""
    parts = ["# Calibration, spread and parts", LEGEND.rstrip()]
    for encoder in found.table.encoders:
        for task in found.table.tasks:
            if found.table.metric(task) not in list(Metric):
                continue
            for selection in SELECTIONS:
                parts += _section(found, encoder, task, selection)
    return "\n\n".join(parts) + "\n"


def _section(found: Robustness, encoder: str, task: str, selection: Selection) -> list[str]:
    table = found.table
    methods = [method for method in table.rows_of(encoder) if table.cell(encoder, method, task) is not None]
    if not methods:
        return []
    chosen = found.measured_on(encoder, task)
    names = [f"{one.name}{f' ({one.unit})' if one.unit else ''}" for one in chosen]
    values = [
        [
            method_title(method),
            _mean(table.cells[encoder, method, task], selection, 2),
            *(_mean(found.by_quantity[q.name].cell(encoder, method, task), selection, q.decimals) for q in chosen),
        ]
        for method in methods
    ]
    title = selection_title(selection, chosen_held_out(table.cells[encoder, method, task] for method in methods))
    text = [
        f"## {task_title(task)}, {encoder}, {title}",
        markdown_table(["method", f"{metric_title(table.metric(task))} (%)", *names], values),
    ]
    some = [p for p in found.pairs if (p.encoder, p.task, p.selection) == (encoder, task, selection)]
    differences = [
        [
            f"{method_title(pair.method)} - {method_title(pair.baseline)}",
            _ratio(found.spread(pair)),
            *(_minus(found.difference(q, pair), q.decimals) for q in chosen),
        ]
        for pair in some
    ]
    return [*text, markdown_table(["difference", "spread ratio", *names], differences)] if differences else text


def _mean(cell: Cell | None, selection: Selection, decimals: int) -> str:
    mean, std = (None, None) if cell is None else (cell.mean(selection), cell.std(selection))
    if cell is None or mean is None:
        return "-"
    deviation = f" ± {std:.{decimals}f}" if has_deviation(std) else ""
    return f"{_number(mean, f'z.{decimals}f')}{deviation} (n = {cell.n(selection)})"


def _minus(difference: Difference | None, decimals: int) -> str:
    if difference is None:
        return "-"
    form = f"+z.{decimals}f"
    told = difference.n > 1 and not math.isnan(difference.mean)
    n = _n(difference.n, difference.interval if told else None)
    return f"{_number(difference.mean, form)}{_interval(difference.interval, form)} ({n})"


def _ratio(spread: SpreadRatio) -> str:
    n = _n(spread.n, spread.interval)
    return f"{number_text(spread.ratio)}{_interval(spread.interval, 'z.2f')} ({n})"


def _n(n: int, interval: Interval | None) -> str:
    """The number of pairs, and why there is no interval where that is to be told."""
    missing = interval is not None and math.isnan(interval.low)
    return f"n = {n}; no interval: {interval.degenerate}" if interval is not None and missing else f"n = {n}"


def _number(value: float, form: str) -> str:
    return "NaN" if math.isnan(value) else f"{value:{form}}"


def _interval(interval: Interval, form: str) -> str:
    return "" if math.isnan(interval.low) else f" [{interval.low:{form}}, {interval.high:{form}}]"


def _rows(found: Robustness) -> list[list[object]]:
    rows: list[list[object]] = [[
        "encoder", "method", "task", "selection", "quantity", "unit", "n", "mean", "std", "baseline", "pairs",
        "difference", "t_low", "t_high", "p_sign_flip", "run_id",
    ]]  # fmt: skip
    pair_of = {(p.encoder, p.method, p.task, p.selection): p for p in found.pairs}
    for quantity, cell, selection in _cells(found):
        pair = pair_of.get((cell.encoder, cell.method, cell.task, selection))
        difference = None if pair is None else found.difference(quantity, pair)
        compared: list[object] = [""] * 6
        if pair is not None and difference is not None:
            interval = difference.interval
            p = sign_flip(difference.values).p
            compared = [pair.baseline, difference.n, difference.mean, interval.low, interval.high, p]
        rows.append([
            cell.encoder, cell.method, cell.task, selection, quantity.name, quantity.unit, cell.n(selection),
            cell.mean(selection), cell.std(selection), *compared, cell.run_id,
        ])  # fmt: skip
    return rows


def _seed_rows(found: Robustness) -> list[list[object]]:
    rows: list[list[object]] = [["encoder", "method", "task", "selection", "quantity", "seed", "value"]]
    for quantity, cell, selection in _cells(found):
        told = [cell.encoder, cell.method, cell.task, selection, quantity.name]
        rows += [[*told, seed, value] for seed, value in cell.scores(selection).items()]
    return rows


def _cells(found: Robustness) -> list[tuple[Quantity, Cell, Selection]]:
    return [
        (quantity, cell, selection)
        for quantity in found.quantities
        for cell in found.by_quantity[quantity.name].cells.values()
        for selection in SELECTIONS
    ]


def _spread_rows(found: Robustness) -> list[list[object]]:
    rows: list[list[object]] = [[
        "encoder", "method", "baseline", "task", "selection", "pairs", "ratio_of_std", "low", "high",
        "p_pitman_morgan", "p_brown_forsythe",
    ]]  # fmt: skip
    for p in found.pairs:
        one = found.spread(p)
        rows.append([
            p.encoder, p.method, p.baseline, p.task, p.selection, one.n, one.ratio, one.interval.low,
            one.interval.high, one.p, one.p_brown_forsythe,
        ])  # fmt: skip
    return rows


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        "python -m experiments.study.robustness", __doc__, "\nExit status: 0 done, 2 a setting or file is wrong."
    )
    add_run_arguments(parser, "measure its cells and no others")
    parser.add_argument(
        "--parts", action="append", default=[], metavar="DEV_SET=FILE",
        help="score each part of a dev set: FILE has a line uid <tab> part for each of its rows, such as "
        "cola_dev=data/cola_domains.tsv; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--baseline",
        help="compare every method with this one; default: with its control where there is one, else vanilla",
    )
    parser.add_argument(
        "--together", action="store_true",
        help="compare runs with several tasks, task by task, with the method's runs on that task alone",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for the Markdown and CSV files; default: print Markdown only")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 for a wrong setting or file."""
    chosen = build_parser().parse_args(arguments)
    return status_of(lambda: _tell(chosen))


def _tell(chosen: argparse.Namespace) -> None:
    parts = [DevParts.read(text) for text in chosen.parts]
    if chosen.together and chosen.baseline is not None:
        raise SettingError("--together compares each method with itself alone; drop --baseline")
    found = analyse(Runs.of(chosen).table(), chosen.runs, parts, chosen.baseline, together=chosen.together)
    print(markdown(found), end="")
    for path in write_robustness(found, chosen.out) if chosen.out else []:
        print(path, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
