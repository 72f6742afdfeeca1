"""The cells of a table: one per (encoder, method, task), with all its seeds."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from experiments.benchmark import DEFAULT, Benchmark
from experiments.study.statistics.difference import Difference, sample_std
from module.methods import METHODS, control_of, is_control
from mt_dnn.results import RunResult, Status, is_held_out

PART = ":"
"""Between the tasks of a run and one of them, as the name of a column: ``cola+rte:rte``."""
Selection = Literal["best", "last"]
SELECTIONS: tuple[Selection, ...] = ("best", "last")


@dataclass(frozen=True, slots=True)
class Cell:
    """All seeds of one setting."""

    encoder: str
    method: str
    task: str
    """Name of the column: a run's task, of several ``cola+rte``; or one of them, ``cola+rte:rte``."""
    run_id: str
    results: tuple[RunResult, ...]
    """Finished runs, failed ones included, by seed."""
    expected: tuple[int, ...]
    """Seeds that the study asked for, or without a study those that were started."""
    trials: int = 1
    """Settings that were tried to find this one, as the study says; 1: none was searched."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of its first seed, precision as it was resolved; a method's own setting as ``pats.noise_scale``."""
    elsewhere: Mapping[int, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """Seed -> set that gave no score -> metric -> percent, of the best epoch (``--evaluate_on``)."""
    descriptions: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Seed -> ``run.json`` of each run that was started; empty where it cannot be read."""
    kept: tuple[RunResult, ...] = ()
    """Of one of several tasks: ``results``, with the scores at the epoch that is best on average."""

    @property
    def run_task(self) -> str:
        """The task of the runs, as it stands in their paths."""
        return self.task.partition(PART)[0]

    @property
    def scored_task(self) -> str:
        """The task that the scores are of."""
        return self.task.rpartition(PART)[2]

    def parts(self) -> list[Cell]:
        """The cells of each task of runs with several; none of runs with one."""
        tasks = self.task.split("+")
        if len(tasks) == 1:
            return []
        results = [result for result in self.results if result.tasks]
        return [
            replace(
                self,
                task=f"{self.task}{PART}{task}",
                results=tuple(r for result in results for r in result.by_task() if r.task == task),
                kept=tuple(result.of_kept_weights(task) for result in results),
            )
            for task in tasks
        ]

    def scores(self, selection: Selection) -> dict[int, float]:
        """Seed -> score in percent.

        A degenerate or diverged run counts like any other; one that diverged before its first evaluation has no
        score and stands as NaN. A failed run (an error, not a result) is missing.
        """
        scores = {}
        for result in self.results:
            epoch = result.best if selection == "best" else result.last
            if result.done:
                scores[result.seed] = math.nan if epoch is None else float(epoch.score)
        return scores

    @property
    def shown_sets(self) -> tuple[str, ...]:
        """Sets that a run was scored on beside those that give its score."""
        epochs = [result.best for result in self.results if result.done]
        names = dict.fromkeys(name for epoch in epochs if epoch is not None for name in epoch.metrics)
        names |= dict.fromkeys(name for scores in self.elsewhere.values() for name in scores)
        scored = {name for result in self.results for name in result.datasets}
        return tuple(name for name in names if name not in scored and not is_held_out(name))

    def on(self, dataset: str) -> Cell | None:
        """The cell judged by the best epochs' scores on one set; None where no run has one.

        A run that diverged before its first evaluation has no score there either, and stands as NaN.
        """
        results, there = [], False
        for result in self.results:
            if result.done and result.best is None:
                results.append(replace(result, datasets=[dataset], last=None))
            elif result.done and result.best is not None:
                metrics = {**result.best.metrics, **self.elsewhere.get(result.seed, {})}.get(dataset, {})
                if result.primary_metric in metrics:
                    score = float(metrics[result.primary_metric])
                    best = replace(result.best, score=score, metrics={dataset: dict(metrics)})
                    results.append(replace(result, datasets=[dataset], best=best, last=None))
                    there = True
        return replace(self, results=tuple(results), elsewhere={}) if there else None

    def n(self, selection: Selection) -> int:
        """Number of runs that count."""
        return len(self.scores(selection))

    def mean(self, selection: Selection) -> float | None:
        """Mean score in percent; NaN when a run has none, None when there is no run."""
        scores = self.scores(selection)
        return math.fsum(scores.values()) / len(scores) if scores else None

    def std(self, selection: Selection) -> float | None:
        """Sample standard deviation (n - 1) in points; None with fewer than two runs."""
        return sample_std(list(self.scores(selection).values()))

    @property
    def stopped_early(self) -> tuple[RunResult, ...]:
        """Runs that patience ended before all their epochs were made."""
        return tuple(result for result in self.results if result.stopped_early)

    @property
    def missing(self) -> tuple[int, ...]:
        """Seeds without a result that counts."""
        there = {result.seed for result in self.results if result.done}
        return tuple(seed for seed in self.expected if seed not in there)

    def count(self, status: Status) -> int:
        """Runs that ended with this status."""
        return sum(result.status is status for result in self.results)


@dataclass(frozen=True, slots=True)
class Average:
    """Mean over the tasks of one row."""

    mean: float
    """Mean of the task means, percent."""
    std: float | None
    """Sample deviation of the seeds' own averages; None unless every task has the same two or more seeds."""
    tasks: int
    """Number of tasks in it."""
    n: int | None
    """Runs behind each task's mean; None where they are not as many for all."""
    whole: bool
    """Whether every task is there with every seed."""


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of one or more encoders, methods and tasks."""

    cells: Mapping[tuple[str, str, str], Cell]
    """(encoder, method, task) -> cell; only cells with at least one started run."""
    encoders: tuple[str, ...]
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    step_times: Mapping[str, float] = field(default_factory=dict)
    """Method -> measured time of a step over plain fine-tuning's; empty: not to be shown."""
    unmatched: tuple[str, ...] = ()
    """``<task>/<encoder>/<method>/<run id>`` of wanted cells without a folder."""
    command: str = ""
    """Of the study; empty: not known."""
    judged_on: str = ""
    """The set whose scores these are; empty: the dev sets that give each task's score."""
    of_kept_weights: bool = False
    """Whether best epochs are those of runs with several tasks that are best on average."""

    @property
    def benchmark(self) -> Benchmark:
        """The benchmark of the first run that names its task definition file; else the default one."""
        return next((b for cell in self.cells.values() if (b := Benchmark.of_run(cell.settings)) is not None), DEFAULT)

    @property
    def run_tasks(self) -> tuple[str, ...]:
        """Columns with runs of their own: without the single tasks of runs with several."""
        return tuple(task for task in self.tasks if PART not in task)

    @property
    def averaged(self) -> tuple[str, ...]:
        """Columns that the average is over: those of one task, and where there are none those of several."""
        return tuple(task for task in self.tasks if "+" not in task) or self.run_tasks

    def cell(self, encoder: str, method: str, task: str) -> Cell | None:
        """The cell, or None where nothing was run."""
        return self.cells.get((encoder, method, task))

    @property
    def shown_sets(self) -> tuple[str, ...]:
        """Sets that runs were scored on beside those that give their scores."""
        return tuple(dict.fromkeys(name for cell in self.cells.values() for name in cell.shown_sets))

    def on(self, dataset: str) -> Table:
        """The table judged by the best epochs' scores on one set, with the tasks that were scored on it."""
        cells = {key: judged for key, cell in self.cells.items() if (judged := cell.on(dataset)) is not None}
        tasks = tuple(t for t in self.tasks if any(key[2] == t for key in cells))
        return replace(self, cells=cells, tasks=tasks, judged_on=dataset)

    def at_kept_weights(self) -> Table:
        """The tasks of runs with several, at the epoch that is best on average; without cells where there is none."""
        cells = {key: replace(cell, results=cell.kept, kept=()) for key, cell in self.cells.items() if cell.kept}
        tasks = tuple(t for t in self.tasks if any(key[2] == t for key in cells))
        return replace(self, cells=cells, tasks=tasks, of_kept_weights=True)

    def judgements(self, selections: Sequence[Selection] = SELECTIONS) -> list[tuple[Table, tuple[Selection, ...]]]:
        """The table, and the table on each of its other sets, where best epochs alone are judged."""
        found: list[tuple[Table, tuple[Selection, ...]]] = [(self, tuple(selections))]
        if "best" in selections:
            found += [(self.on(name), ("best",)) for name in self.shown_sets]
        return found

    def selection_name(self, selection: Selection) -> str:
        """Name of a rule in CSV files: ``best_average`` is the epoch of :meth:`at_kept_weights`."""
        return "best_average" if self.of_kept_weights else selection

    def metric(self, task: str) -> str:
        """Primary metric of a task, e.g. ``MCC``; empty when no run of it has finished."""
        names = {result.primary_metric for cell in self.cells.values() if cell.task == task for result in cell.results}
        return "/".join(sorted(names))

    def rows_of(self, encoder: str) -> list[str]:
        """Methods that were run on this encoder, in the table's order."""
        return [m for m in self.methods if any((encoder, m, task) in self.cells for task in self.tasks)]

    def average(self, encoder: str, method: str, selection: Selection) -> Average | None:
        """Mean over the tasks that have a score; None when none has."""
        tasks = self.averaged
        cells = [cell for task in tasks if (cell := self.cell(encoder, method, task)) is not None]
        means = [mean for cell in cells if (mean := cell.mean(selection)) is not None]
        if not means:
            return None
        scores = [cell.scores(selection) for cell in cells]
        n, *others = {len(s) for s in scores}
        std = None
        if len(means) == len(tasks) and len({tuple(s) for s in scores}) == 1:
            std = sample_std([math.fsum(s[seed] for s in scores) / len(scores) for seed in scores[0]])
        whole = len(means) == len(tasks) and not any(cell.missing for cell in cells)
        return Average(math.fsum(means) / len(means), std, len(means), None if others else n, whole)

    def minus(self, encoder: str, method: str, other: str, task: str, selection: Selection) -> Difference | None:
        """A method minus another one, paired over seeds; None where they have no seed in common."""
        ours, theirs = self.cell(encoder, method, task), self.cell(encoder, other, task)
        if ours is None or theirs is None:
            return None
        a, b = ours.scores(selection), theirs.scores(selection)
        by_seed = {seed: a[seed] - b[seed] for seed in a if seed in b}
        return Difference(other, by_seed) if by_seed else None

    def stops_unlike(self, encoder: str, method: str, other: str, task: str) -> bool:
        """Whether runs of two methods stopped early by a rule that was not the same for both."""
        cells = [self.cells[key] for key in ((encoder, m, task) for m in (method, other)) if key in self.cells]
        rules = {cell.settings.get("patience") for cell in cells}
        return len(rules) > 1 and any(cell.stopped_early for cell in cells)

    def average_minus(self, encoder: str, method: str, other: str, selection: Selection) -> Difference | None:
        """The difference of each seed's averages over the tasks; None unless every task has the same pairs."""
        parts = [self.minus(encoder, method, other, task, selection) for task in self.averaged]
        there = [part.by_seed for part in parts if part is not None]
        if not there or len(there) < len(parts) or len({tuple(part) for part in there}) > 1:
            return None
        return Difference(other, {seed: math.fsum(part[seed] for part in there) / len(there) for seed in there[0]})

    @property
    def complete(self) -> bool:
        """Whether every cell is there with every seed."""
        every = ((e, m, t) for e in self.encoders for m in self.methods for t in self.tasks)
        return all((cell := self.cells.get(key)) is not None and not cell.missing for key in every)


def chosen_held_out(cells: Iterable[Cell]) -> bool | None:
    """Whether best epochs were chosen by rows held out of the training set, not by dev; None: those of some runs."""
    chosen = {result.best.held_out is not None for cell in cells for result in cell.results if result.best is not None}
    return None if len(chosen) > 1 else True in chosen


def known_control(method: str) -> str | None:
    """The method's control; None for plain fine-tuning and for a method of a package that is not here any more."""
    try:
        return control_of(method)
    except ValueError:
        return None


def baseline_of(method: str, methods: Collection[str]) -> str | None:
    """The baseline of a method: its control where that is among the methods, else plain fine-tuning, which has none."""
    control = known_control(method)
    if control in methods:
        return control
    return "vanilla" if method != "vanilla" else None


def beside_controls(methods: Collection[str]) -> tuple[str, ...]:
    """The registry's order of the controls, after each one the methods that are compared with it."""
    registry = list(METHODS)

    def place(method: str) -> list[int]:
        return [registry.index(part) for part in method.split("+")]

    def key(method: str) -> tuple[Any, ...]:
        try:
            alone = is_control(method)
        except ValueError:  # of a package that is not here any more, or is broken
            return ([len(registry)], True, [], method)
        control = method if alone else known_control(method)
        head = control if control is not None and control in methods else "vanilla"
        return (place(head), not alone, place(method), method)

    return tuple(sorted(methods, key=key))
