"""Every method of a table against its baseline, paired over seeds: tests, intervals, stochastic order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from data_utils.errors import SettingError
from experiments.study.statistics.difference import Difference
from experiments.study.statistics.intervals import Interval, bca_interval
from experiments.study.statistics.paired_tests import SignFlip, holm, sign_flip
from experiments.study.statistics.stochastic_order import StochasticOrder, almost_stochastic_order
from experiments.study.table.cells import SELECTIONS, Cell, Selection, Table, baseline_of, chosen_held_out
from module.seeds import stream_seed

AVERAGE = "average"
"""Stands for a task where the seeds' averages over all tasks are compared."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A method and its baseline on one task, under one selection rule."""

    encoder: str
    method: str
    baseline: str
    task: str
    """Or :data:`AVERAGE`."""
    selection: Selection
    on: str = ""
    """Another set that judges both; empty: the task's dev sets."""


@dataclass(frozen=True, slots=True)
class SeedComparison:
    """One pair over the seeds that both methods have."""

    pair: Pair
    metric: str
    difference: Difference
    """Method minus baseline; holds Student's interval."""
    bca: Interval
    sign_flip: SignFlip
    p_holm: float
    """The sign-flip p after Holm's correction over the pairs of this encoder, set and selection rule."""
    order: StochasticOrder | None
    """Scores of all seeds of both, unpaired; None for the average."""
    stops_unlike: bool = False
    """Whether runs of the two stopped early by a rule that was not the same for both."""
    held_out: bool | None = False
    """Whether the best epochs of the two were chosen by held-out rows; see :func:`chosen_held_out`."""


def together_and_alone(table: Table) -> tuple[Table, dict[str, str]]:
    """Put the tasks of runs with several beside the runs that train them alone, as rows of one column.

    Returns:
        The table, and its row of each run with several tasks -> the method's row alone.
    """
    cells: dict[tuple[str, str, str], Cell] = {}
    rows: dict[str, str] = {}
    for (encoder, method, _), cell in table.cells.items():
        alone = table.cell(encoder, method, cell.scored_task)
        if cell.scored_task == cell.run_task or alone is None:
            continue
        label = f"{method} together ({', '.join(cell.run_task.split('+'))})"
        cells |= {(encoder, label, cell.scored_task): cell, (encoder, method, cell.scored_task): alone}
        rows[label] = method
    tasks = tuple(task for task in table.tasks if any(key[2] == task for key in cells))
    methods = tuple(dict.fromkeys((*rows.values(), *rows)))
    return replace(table, cells=cells, methods=methods, tasks=tasks), rows


def pairs(
    table: Table,
    baseline: str | None = None,
    selections: Sequence[Selection] = SELECTIONS,
    against: Mapping[str, str] | None = None,
) -> list[Pair]:
    """List the comparisons of a table: each method with its baseline, task by task, then the average.

    Args:
        table: The table; judged by another set, its pairs say so.
        baseline: Compare every other method with this one. Default: each with its control where the encoder has it,
            else with plain fine-tuning.
        selections: Which epochs.
        against: Row -> its baseline, in the place of the default; other rows are not compared.

    Raises:
        SettingError: no such method in the table.
    """
    if baseline is not None and baseline not in table.methods:
        raise SettingError(f"--baseline {baseline!r} is not in the table; there are {', '.join(table.methods)}")
    found = []
    for encoder in table.encoders:
        methods = table.rows_of(encoder)
        for selection in selections:
            for method in methods:
                default = baseline_of(method, methods) if against is None else against.get(method)
                other = baseline if baseline is not None else default
                if other is None or other == method or other not in methods:
                    continue
                tasks = [t for t in table.tasks if table.minus(encoder, method, other, t, selection) is not None]
                if len(table.averaged) > 1 and table.average_minus(encoder, method, other, selection) is not None:
                    tasks.append(AVERAGE)
                found += [Pair(encoder, method, other, task, selection, table.judged_on) for task in tasks]
    return found


def compare_seeds(
    table: Table, chosen: Sequence[Pair], resamples: int = 9_999, random_seed: int = 0
) -> list[SeedComparison]:
    """Compare pairs over seeds.

    Args:
        table: The table.
        chosen: Its :func:`pairs`.
        resamples: Bootstrap samples of the BCa interval and of the stochastic order.
        random_seed: Of the bootstrap; each pair's draws depend on it and on the number of seeds alone.
    """
    found = []
    for pair in chosen:
        difference = _difference(table, pair)
        values, seed = difference.values, stream_seed(random_seed, "seeds")
        order = None
        if pair.task != AVERAGE:
            ours, theirs = (
                list(table.cells[pair.encoder, method, pair.task].scores(pair.selection).values())
                for method in (pair.method, pair.baseline)
            )
            order = almost_stochastic_order(ours, theirs, resamples=resamples, seed=seed)
        metric = table.metric(pair.task) if pair.task != AVERAGE else ""
        bca = bca_interval(values, resamples=resamples, seed=seed)
        flips = sign_flip(values, seed)
        tasks = table.averaged if pair.task == AVERAGE else (pair.task,)
        unlike = any(table.stops_unlike(pair.encoder, pair.method, pair.baseline, task) for task in tasks)
        cells = [table.cells[pair.encoder, name, task] for name in (pair.method, pair.baseline) for task in tasks]
        held_out = chosen_held_out(cells)
        found.append(SeedComparison(pair, metric, difference, bca, flips, flips.p, order, unlike, held_out))
    corrected = correct([c.pair for c in found], [c.sign_flip.p for c in found])
    return [replace(c, p_holm=p) for c, p in zip(found, corrected, strict=True)]


def correct(of: Sequence[Pair], p_values: Sequence[float]) -> list[float]:
    """Holm's correction within each family: the comparisons of one encoder, one selection rule and one other set.

    Args:
        of: The pairs.
        p_values: Theirs, in the same order.
    """
    corrected = list(p_values)
    for places in families(of):
        for place, p in zip(places, holm([p_values[i] for i in places]), strict=True):
            corrected[place] = p
    return corrected


def families(of: Sequence[Pair]) -> Iterator[list[int]]:
    """Places of the pairs of each family: of one encoder, selection rule and set."""
    for family in dict.fromkeys(map(family_of, of)):
        yield [i for i, pair in enumerate(of) if family_of(pair) == family]


def family_of(pair: Pair) -> tuple[str, Selection, str]:
    """The family of a pair: its encoder, its selection rule and the other set that judges it."""
    return pair.encoder, pair.selection, pair.on


def _difference(table: Table, pair: Pair) -> Difference:
    if pair.task == AVERAGE:
        found = table.average_minus(pair.encoder, pair.method, pair.baseline, pair.selection)
    else:
        found = table.minus(pair.encoder, pair.method, pair.baseline, pair.task, pair.selection)
    assert found is not None, "pairs() lists those that have a difference"
    return found
