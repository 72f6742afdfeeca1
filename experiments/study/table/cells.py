"""Finished runs gathered into the cells of a table: one per (encoder, method, task), with all its seeds."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_utils.errors import SettingError, shown
from experiments.study.statistics.difference import Difference, sample_std
from experiments.study.table.contents import Finished, refuse_mixture
from experiments.study.table.wanted import Wanted
from module.methods import METHODS, control_of, is_control
from mt_dnn.config import NOT_IDENTITY
from mt_dnn.identity import Identity
from mt_dnn.results import RunDirectory, RunResult, Status

Selection = Literal["best", "last"]
SELECTIONS: tuple[Selection, ...] = ("best", "last")

# The paper's order; whatever else there is comes after, by name.
TASK_ORDER = ("cola", "mrpc", "rte", "stsb", "qqp", "qnli", "mnli", "sst")


@dataclass(frozen=True, slots=True)
class Cell:
    """All seeds of one setting."""

    encoder: str
    method: str
    task: str
    run_id: str
    results: tuple[RunResult, ...]
    """Finished runs, failed ones included, by seed."""
    expected: tuple[int, ...]
    """Seeds that the study asked for, or without a study those that were started."""
    trials: int = 1
    """Settings that were tried to find this one, as the study says; 1: none was searched."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What its first seed was set to, precision as it was resolved; a method's own setting as ``pats.noise_scale``."""
    descriptions: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Seed -> ``run.json`` of each run that was started; empty where it cannot be read."""

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
    """How many tasks went in."""
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

    def cell(self, encoder: str, method: str, task: str) -> Cell | None:
        """The cell, or None where nothing was run."""
        return self.cells.get((encoder, method, task))

    def metric(self, task: str) -> str:
        """Primary metric of a task, e.g. ``MCC``; empty when no run of it has finished."""
        names = {result.primary_metric for cell in self.cells.values() if cell.task == task for result in cell.results}
        return "/".join(sorted(names))

    def rows_of(self, encoder: str) -> list[str]:
        """Methods that were run on this encoder, in the table's order."""
        return [m for m in self.methods if any((encoder, m, task) in self.cells for task in self.tasks)]

    def average(self, encoder: str, method: str, selection: Selection) -> Average | None:
        """Mean over the tasks that have a score; None when none has."""
        cells = [cell for task in self.tasks if (cell := self.cell(encoder, method, task)) is not None]
        means = [mean for cell in cells if (mean := cell.mean(selection)) is not None]
        if not means:
            return None
        scores = [cell.scores(selection) for cell in cells]
        std = None
        if len(means) == len(self.tasks) and len({tuple(s) for s in scores}) == 1:
            std = sample_std([math.fsum(s[seed] for s in scores) / len(scores) for seed in scores[0]])
        whole = len(means) == len(self.tasks) and not any(cell.missing for cell in cells)
        return Average(math.fsum(means) / len(means), std, len(means), whole)

    def minus(self, encoder: str, method: str, other: str, task: str, selection: Selection) -> Difference | None:
        """A method minus another one, paired over seeds; None where they have no seed in common."""
        ours, theirs = self.cell(encoder, method, task), self.cell(encoder, other, task)
        if ours is None or theirs is None:
            return None
        a, b = ours.scores(selection), theirs.scores(selection)
        by_seed = {seed: a[seed] - b[seed] for seed in a if seed in b}
        return Difference(other, by_seed) if by_seed else None

    def average_minus(self, encoder: str, method: str, other: str, selection: Selection) -> Difference | None:
        """The same of each seed's average over the tasks; None unless every task has the same pairs."""
        parts = [self.minus(encoder, method, other, task, selection) for task in self.tasks]
        there = [part.by_seed for part in parts if part is not None]
        if not there or len(there) < len(parts) or len({tuple(part) for part in there}) > 1:
            return None
        return Difference(other, {seed: math.fsum(part[seed] for part in there) / len(there) for seed in there[0]})

    @property
    def complete(self) -> bool:
        """Whether every cell is there with every seed."""
        every = ((e, m, t) for e in self.encoders for m in self.methods for t in self.tasks)
        return all((cell := self.cells.get(key)) is not None and not cell.missing for key in every)


@dataclass(frozen=True, slots=True)
class _Run:
    """A run that was started, as its folder tells it."""

    path: Path
    result: RunResult | None
    description: Mapping[str, Any]


def gather(runs: Path, wanted: Wanted | None = None, run_ids: Collection[str] = ()) -> Table:
    """Read the runs under a folder into a table.

    Args:
        runs: ``output_dir`` of the runs.
        wanted: The study to show; None takes every run found.
        run_ids: Run ids to choose where a cell has several.

    Raises:
        SettingError: no such folder, a damaged result or one of another run, a score that is not the mean of its dev
            sets, a cell with several run ids and no choice among them, or runs of different data, task definitions or
            encoders.
    """
    if not runs.is_dir():
        raise SettingError(f"no folder {runs}: give the output_dir of the runs")
    found: dict[tuple[str, str, str], dict[str, dict[int, _Run]]] = {}
    for seed_dir in sorted(runs.glob("*/*/*/*/seed=*")):
        task, encoder, method, run_id = seed_dir.relative_to(runs).parts[:4]
        key = (encoder, method, task)
        if (wanted is not None and wanted.cells.get(key, ("",))[0] != run_id) or not _was_started(seed_dir):
            continue
        seeds = found.setdefault(key, {}).setdefault(run_id, {})
        seeds[int(seed_dir.name.removeprefix("seed="))] = _read(seed_dir)
    unmatched = []
    if wanted is not None:
        for (encoder, method, task), (run_id, _) in wanted.cells.items():
            found.setdefault((encoder, method, task), {}).setdefault(run_id, {})
            if not (runs / task / encoder / method / run_id).is_dir():
                unmatched.append(f"{task}/{encoder}/{method}/{run_id}")
    cells = {}
    for key, by_id in found.items():
        run_id = _choose(key, by_id, run_ids)
        started = by_id[run_id]
        expected = wanted.cells[key][1] if wanted is not None else tuple(started)
        shown = tuple(r for seed in sorted(expected) if seed in started and (r := started[seed].result) is not None)
        trials = wanted.trials.get(key, 1) if wanted is not None else 1
        descriptions = {seed: run.description for seed, run in started.items()}
        settings = _settings(descriptions.values())
        cells[key] = Cell(*key, run_id, shown, tuple(sorted(expected)), trials, settings, descriptions)
    refuse_mixture(run for cell in cells.values() for run in finished_runs(cell, runs))
    encoders, methods, tasks = ({key[i] for key in cells} for i in range(3))
    return Table(
        cells, tuple(sorted(encoders)), _beside_controls(methods), _ordered(tasks, TASK_ORDER),
        command=wanted.command if wanted is not None else "", unmatched=tuple(unmatched),
    )  # fmt: skip


def warn_unmatched(table: Table) -> None:
    """Name, on standard error, the cells of a study that no folder matches."""
    if table.unmatched:
        listed = ", ".join(table.unmatched[:3]) + (", ..." if len(table.unmatched) > 3 else "")
        print(
            f"warning: {len(table.unmatched)} cells of the study have no folder among the runs (not started, or of "
            f"another task, encoder, method or run id): {listed}",
            file=sys.stderr,
        )


def finished_runs(cell: Cell, runs: Path) -> list[Finished]:
    """Those of a cell's runs that count, with what they were made of.

    Raises:
        SettingError: a ``run.json`` does not say so in the form of this version.
    """
    folders = run_folders(cell, runs)
    return [
        (folders[result.seed], result, Identity.of_description(cell.descriptions.get(result.seed, {})))
        for result in cell.results
        if result.done
    ]


def run_folders(cell: Cell, runs: Path) -> dict[int, Path]:
    """Seed -> folder of each of a cell's finished runs."""
    parent = runs / cell.task / cell.encoder / cell.method / cell.run_id
    return {result.seed: parent / f"seed={result.seed}" for result in cell.results}


def _was_started(seed_dir: Path) -> bool:
    return seed_dir.name.removeprefix("seed=").isdecimal() and (
        (seed_dir / "run.json").is_file() or (seed_dir / "result.json").is_file()
    )


def _read(seed_dir: Path) -> _Run:
    directory = RunDirectory(seed_dir)
    result = directory.read_result()
    try:
        description = directory.read_description() or {}
    except SettingError:
        if result is not None and result.done:
            raise
        description = {}  # the run itself tells when it is started again
    if result is None:
        return _Run(seed_dir, None, description)
    for epoch in (result.best, result.last):
        if epoch is None:
            continue
        parts = [epoch.metrics[dataset][result.primary_metric] for dataset in result.datasets]
        mean = math.fsum(parts) / len(parts)
        same = math.isclose(mean, epoch.score, rel_tol=1e-9, abs_tol=1e-9)
        if not same and not (math.isnan(mean) and math.isnan(epoch.score)):
            raise SettingError(
                f"{seed_dir / 'result.json'}: score {epoch.score} is not the mean of {result.primary_metric} over "
                f"{', '.join(result.datasets)} ({mean}); delete the file to run again"
            )
    return _Run(seed_dir, result, description)


def _choose(key: tuple[str, str, str], by_id: Mapping[str, Mapping[int, _Run]], run_ids: Collection[str]) -> str:
    candidates = sorted(by_id)
    if len(candidates) > 1:
        candidates = [run_id for run_id in candidates if run_id in run_ids] or candidates
    if len(candidates) > 1:
        encoder, method, task = key
        configs = {run_id: _settings(run.description for run in by_id[run_id].values()) for run_id in candidates}
        raise SettingError(
            f"{encoder}, {method}, {task} was run with {len(candidates)} settings: "
            f"{'; '.join(_differences(configs))}: choose with --study study.json or --run_id"
        )
    return candidates[0]


def _settings(descriptions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    for description in descriptions:
        config = description.get("config")
        if not isinstance(config, dict) or "precision" not in config:
            continue
        config = {**config, "precision": description.get("resolved_precision", config["precision"])}
        flat = {key: value for key, value in config.items() if not isinstance(value, dict)}
        for group in (value for value in config.values() if isinstance(value, dict)):
            for method, settings in group.items():
                flat |= {f"{method}.{k}": v for k, v in settings.items()} if isinstance(settings, dict) else {}
        return {key: value for key, value in flat.items() if key not in ("seed", "recipe")}
    return {}


def _differences(configs: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Each run id with the settings that tell it from the others; paths and devices only where nothing else does."""
    keys = sorted({key for config in configs.values() for key in config})
    differing = [key for key in keys if len({json.dumps(c.get(key), default=str) for c in configs.values()}) > 1]
    differing = [key for key in differing if key not in NOT_IDENTITY] or differing
    more = f" and {len(differing) - 6} more" if len(differing) > 6 else ""
    for run_id, config in configs.items():
        listed = ", ".join(f"{key} {shown(config.get(key))}" for key in differing[:6])
        yield f"{run_id} ({listed}{more})" if listed else run_id


def known_control(method: str) -> str | None:
    """The method's control; None for plain fine-tuning and for a method of a package that is not here any more."""
    try:
        return control_of(method)
    except ValueError:
        return None


def _beside_controls(methods: Collection[str]) -> tuple[str, ...]:
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


def _ordered(names: Iterable[str], order: Sequence[str]) -> tuple[str, ...]:
    rank = Counter({name: i - len(order) for i, name in enumerate(order)})
    return tuple(sorted(names, key=lambda name: (rank[name], name)))
