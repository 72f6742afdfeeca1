"""The quantities beside the score that runs can be compared by: calibration, and the score on parts of a dev set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_utils.canonical_tsv import iterate_lines, split_row, without_blank_end
from data_utils.errors import SettingError, shown
from data_utils.names import check_name
from data_utils.task_def import Metric
from experiments.study.comparison.predictions import Predictions, read_predictions, score_of
from experiments.study.statistics.calibration import Calibration, calibration_of
from experiments.study.statistics.example_bootstrap import is_regression
from experiments.study.table.cells import SELECTIONS, Cell, Selection, Table
from mt_dnn.results import EpochScore, RunResult

Measure = Callable[[Mapping[str, Predictions], Metric], float | None]
"""Dev set -> predictions of a run, and its metric -> the value; None where it is not defined for such a task."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that each run has."""

    name: str
    """As in tables and CSV files."""
    unit: str
    """``%``, ``points``, ``nats``, or empty."""
    decimals: int
    measure: Measure


@dataclass(frozen=True, slots=True)
class DevParts:
    """A division of a dev set."""

    dataset: str
    """Such as ``cola_dev``."""
    names: tuple[str, ...]
    """In the order of the file; at least two."""
    of_uid: Mapping[bytes, str]
    """A row's uid -> its part."""
    file: Path

    @classmethod
    def read(cls, text: str) -> DevParts:
        """Read ``<dev set>=<file>``, whose lines are ``uid <tab> part``.

        Raises:
            SettingError: another form, no file, fewer than two parts, or a uid twice.
            OSError: the file cannot be read.
        """
        dataset, equals, name = text.partition("=")
        if not equals or not name or not dataset.endswith("_dev"):
            raise SettingError(f"--parts is {shown(text)}; legal: <dev set>=<file>, such as cola_dev=cola_domains.tsv")
        file, of_uid = Path(name), dict[bytes, str]()
        if not file.exists():
            raise SettingError(f"--parts: {file} does not exist; name a file with a line uid <tab> part for each row")
        for number, line in without_blank_end(iterate_lines(file)):
            uid, part = split_row(file, number, line, ("uid", "part"))
            if uid.encode() in of_uid:
                raise SettingError(f"{file}: line {number}: uid {shown(uid)} is there already; give each row one part")
            of_uid[uid.encode()] = check_name("part", part)
        names = tuple(dict.fromkeys(of_uid.values()))
        if len(names) < 2:
            raise SettingError(f"{file} has {len(names)} parts; give a file with two or more")
        return cls(dataset, names, of_uid, file)

    def score(self, one: Predictions, part: str, metric: Metric) -> float:
        """The metric on the examples of one part, in percent; NaN where it is not defined there.

        Raises:
            SettingError: the file is of other rows than the dev set.
        """
        uids = one.uids.tolist()
        if odd := self.of_uid.keys() ^ set(uids):
            raise SettingError(
                f"{self.file}: {len(odd)} uids are not in both it and {self.dataset} of the runs, such as "
                f"{shown(min(odd).decode())}; make the file from the same data"
            )
        rows = np.array([self.of_uid[uid] == part for uid in uids])
        return score_of(
            metric, replace(one, uids=one.uids[rows], labels=one.labels[rows], predicted=one.predicted[rows])
        )


def calibration_quantities() -> list[Quantity]:
    """Errors of the probabilities, for classifiers; of a task with several dev sets the mean over them."""

    def mean_of(pick: Callable[[Calibration], float]) -> Measure:
        def measure(by_set: Mapping[str, Predictions], metric: Metric) -> float | None:
            if is_regression(metric):
                return None
            return float(np.mean([pick(calibration_of(one.logits, one.labels)) for one in by_set.values()]))

        return measure

    return [
        Quantity("ECE", "%", 2, mean_of(lambda found: found.ece)),
        Quantity("NLL", "nats", 4, mean_of(lambda found: found.nll)),
        Quantity("Brier", "", 4, mean_of(lambda found: found.brier)),
    ]


def part_quantities(parts: DevParts) -> list[Quantity]:
    """The score on each part; of two parts also by how much the second is below the first."""

    def on(part: str) -> Measure:
        def measure(by_set: Mapping[str, Predictions], metric: Metric) -> float | None:
            one = by_set.get(parts.dataset)
            return None if one is None else parts.score(one, part, metric)

        return measure

    found = [Quantity(f"{parts.dataset}:{part}", "%", 2, on(part)) for part in parts.names]
    if len(found) == 2:
        first, second = found

        def drop(by_set: Mapping[str, Predictions], metric: Metric) -> float | None:
            a, b = first.measure(by_set, metric), second.measure(by_set, metric)
            return None if a is None or b is None else a - b

        found.append(Quantity(f"{first.name} - {parts.names[1]}", "points", 2, drop))
    return found


def measured(table: Table, runs: Path, quantities: Sequence[Quantity]) -> dict[str, Table]:
    """The table once more for each quantity, which stands in the place of the score.

    Args:
        table: The table.
        runs: ``output_dir`` of its runs.
        quantities: What to measure.

    Returns:
        Name of a quantity -> table. Runs that kept no predictions are not in it, and cells without a value; a run
        without a score has NaN.

    Raises:
        SettingError: predictions that are damaged or not of their result; parts of another dev set.
    """
    cells: dict[str, dict[tuple[str, str, str], Cell]] = {quantity.name: {} for quantity in quantities}
    for key, cell in table.cells.items():
        if table.metric(cell.task) not in list(Metric):
            continue  # the mean over several tasks, each of which has a cell
        by_result = [(result, _read(runs, cell, result)) for result in cell.results if result.done]
        for quantity in quantities:
            judged = {result.seed: _judged_by(quantity, result, read) for result, read in by_result}
            if any(judged.values()):
                lost = {result.seed: result for result, _ in by_result if not _has_score(result)}
                results = tuple(found for seed, one in judged.items() if (found := one or lost.get(seed)) is not None)
                cells[quantity.name][key] = replace(cell, results=results, elsewhere={}, kept=())
    return {name: replace(table, cells=there) for name, there in cells.items()}


def _read(runs: Path, cell: Cell, result: RunResult) -> dict[Selection, dict[str, Predictions] | None]:
    return {selection: read_predictions(runs, cell, result, selection) for selection in SELECTIONS}


def _has_score(result: RunResult) -> bool:
    return any(epoch is not None and not math.isnan(epoch.score) for epoch in (result.best, result.last))


def _judged_by(
    quantity: Quantity, result: RunResult, read: Mapping[Selection, Mapping[str, Predictions] | None]
) -> RunResult | None:
    metric = Metric(result.primary_metric)
    values = {name: None if by_set is None else quantity.measure(by_set, metric) for name, by_set in read.items()}
    if all(value is None for value in values.values()):
        return None
    best, last = (_with_score(getattr(result, name), values[name]) for name in SELECTIONS)
    return replace(result, best=best, last=last)


def _with_score(epoch: EpochScore | None, value: float | None) -> EpochScore | None:
    return None if epoch is None else replace(epoch, score=math.nan if value is None else value)
