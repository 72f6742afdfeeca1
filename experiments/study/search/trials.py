"""The trials of a search, read from ``search.json`` and the runs that it names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import Any

from data_utils.errors import SettingError
from data_utils.json_file import read_json
from experiments.benchmark import DEFAULT, Benchmark
from experiments.study.arguments import SAMPLERS
from experiments.study.fields import Fields, is_share
from experiments.study.table.contents import Finished, refuse_mixture
from mt_dnn.identity import read_identity
from mt_dnn.results import RunResult, Status
from mt_dnn.run_directory import RunDirectory


class TrialStatus(StrEnum):
    """The state of a trial."""

    DONE = "done"
    PRUNED = "pruned"
    MISSING = "missing"  # not started, not finished, or failed


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting that was tried, over the search's seeds."""

    number: int
    """From 0, in the order in which they were asked for."""
    settings: Mapping[str, Any]
    """Dotted setting -> value."""
    run_id: str
    results: tuple[RunResult | None, ...]
    """One per seed."""
    prunes: bool = False
    """Whether the search may give trials up."""

    @property
    def status(self) -> TrialStatus:
        """The state over all seeds: pruned if one of them is, and missing until every seed is over."""
        if not all(is_over(result, self.prunes) for result in self.results):
            return TrialStatus.MISSING
        pruned = any(result is not None and result.status is Status.PRUNED for result in self.results)
        return TrialStatus.PRUNED if pruned else TrialStatus.DONE

    @property
    def score(self) -> float:
        """The score that trials are chosen by: mean over the seeds of the best epoch's, percent.

        NaN for a trial that is not done, and for one of which a seed diverged or has no score.
        """
        if self.status is not TrialStatus.DONE or any(r is None or r.status is Status.DIVERGED for r in self.results):
            return math.nan
        return fmean(math.nan if r is None or r.best is None else r.best.choice for r in self.results)

    @property
    def dev(self) -> float:
        """Dev score at the same epochs, percent; NaN where there is no score."""
        if self.status is not TrialStatus.DONE:
            return math.nan
        return fmean(math.nan if r is None or r.best is None else r.best.score for r in self.results)


@dataclass(frozen=True, slots=True)
class SearchedCell:
    """All trials of one (encoder, method, task)."""

    encoder: str
    """Hub name, local folder or packaged encoder."""
    name: str
    """The encoder as it stands in paths and tables."""
    method: str
    task: str
    recipe: str
    """Name of the recipe whose grid was searched."""
    source: str
    """The origin of that recipe's numbers."""
    settings: Mapping[str, Any]
    """Everything that the trials have in common, as in a recipe."""
    learning_rate: float
    """Of the settings in common; the trials' rate if the grid has none."""
    grid: Mapping[str, Sequence[Any]]
    """Dotted setting -> values searched."""
    planned: int
    """Trials that the search makes."""
    trials: tuple[Trial, ...]

    @property
    def size(self) -> int:
        """Points of the grid."""
        return math.prod(map(len, self.grid.values()))

    @property
    def best(self) -> Trial | None:
        """The done trial with the highest score, the first of equals; None where none has a score."""
        scored = [trial for trial in self.trials if not math.isnan(trial.score)]
        return max(scored, key=lambda trial: trial.score, default=None)

    @property
    def is_complete(self) -> bool:
        """Whether every planned trial is over."""
        return self.over == self.planned

    @property
    def over(self) -> int:
        """Trials that are over, pruned ones included: settings that were tried."""
        return self.count(TrialStatus.DONE) + self.count(TrialStatus.PRUNED)

    def count(self, status: TrialStatus) -> int:
        """Trials that are this far."""
        return sum(trial.status is status for trial in self.trials)

    @property
    def metric(self) -> str:
        """Primary metric of the task; empty when no run has finished."""
        return next((r.primary_metric for trial in self.trials for r in trial.results if r is not None), "")

    def chosen(self, key: str) -> Any:
        """The best trial's value of a setting of the grid; None where there is no best."""
        return self.best.settings.get(key) if self.best is not None else None

    def is_at_end(self, key: str) -> bool:
        """Whether the best value of a setting is the smallest or the largest of several numbers searched."""
        values = [value for value in self.grid[key] if isinstance(value, int | float) and not isinstance(value, bool)]
        return len(values) == len(self.grid[key]) > 1 and self.chosen(key) in (min(values), max(values))


@dataclass(frozen=True, slots=True)
class Search:
    """A search with all its cells."""

    sampler: str
    """``grid``, ``sobol``, ``halton`` or ``tpe``."""
    sampler_seed: int
    seeds: tuple[int, ...]
    """Seeds of every trial."""
    holdout: float | None
    """Share of the training set that the trials are chosen by; None: by dev."""
    prune_after: int | None
    """Epochs before median pruning; None: off."""
    cells: tuple[SearchedCell, ...]
    benchmark: Benchmark = DEFAULT
    """Of the runs; the default one where none was started."""

    @property
    def is_complete(self) -> bool:
        """Whether every planned trial is over."""
        return all(cell.is_complete for cell in self.cells)

    def with_best(self) -> dict[tuple[str, str], list[SearchedCell]]:
        """(name of the encoder, method) -> cells that have a best trial."""
        found: dict[tuple[str, str], list[SearchedCell]] = {}
        for cell in self.cells:
            if cell.best is not None:
                found.setdefault((cell.name, cell.method), []).append(cell)
        return found


def is_over(result: RunResult | None, prunes: bool) -> bool:
    """Whether a search has nothing left to do for a run."""
    return result is not None and (result.done or (prunes and result.status is Status.PRUNED))


def read_search(search_json: Path, runs: Path | None = None) -> Search:
    """Read ``search.json`` and the results of its runs.

    Args:
        search_json: The file.
        runs: Folder of the runs, where it is not the one that the file names.

    Raises:
        SettingError: there is no such file, or it is not a search's; or a damaged result.
    """
    try:
        content = Fields(read_json(search_json), str(search_json))
    except FileNotFoundError:
        raise SettingError(
            f"search_json: no file {search_json}; give the search.json that study --search wrote into its --results_dir"
        ) from None
    folder = runs or Path(content.text("output_dir"))
    prune_after = None if content.values.get("prune_after") is None else content.integer("prune_after", 1)
    seeds = content.seeds("seeds")
    cells = tuple(_cell(cell, folder, seeds, prune_after is not None) for cell in content.mappings("cells"))
    refuse_mixture(run for cell in cells for run in _finished(cell, folder, seeds))
    return Search(
        sampler=content.get("sampler", f"one of {', '.join(SAMPLERS)}", lambda v: v in SAMPLERS),
        sampler_seed=content.integer("sampler_seed", 0),
        seeds=seeds,
        holdout=content.get("holdout", "null or a share in (0, 1)", lambda v: v is None or is_share(v), None),
        prune_after=prune_after,
        cells=cells,
        benchmark=next(_benchmarks(cells, folder, seeds), DEFAULT),
    )


def _directory(runs: Path, task: str, name: str, method: str, run_id: str, seed: int) -> RunDirectory:
    return RunDirectory(runs / task / name / method / run_id / f"seed={seed}")


def _finished(cell: SearchedCell, runs: Path, seeds: Sequence[int]) -> Iterator[Finished]:
    """Runs of a cell that are over, with their identity."""
    for trial in cell.trials:
        for seed, result in zip(seeds, trial.results, strict=True):
            if result is not None and is_over(result, prunes=True):
                directory = _directory(runs, cell.task, cell.name, cell.method, trial.run_id, seed)
                yield directory.path, result, read_identity(directory)


def _benchmarks(cells: Sequence[SearchedCell], runs: Path, seeds: Sequence[int]) -> Iterator[Benchmark]:
    for cell in cells:
        for path, _, _ in _finished(cell, runs, seeds):
            config = (RunDirectory(path).read_description() or {}).get("config")
            if isinstance(config, dict) and (benchmark := Benchmark.of_run(config)) is not None:
                yield benchmark


def _cell(cell: Fields, runs: Path, seeds: Sequence[int], prunes: bool) -> SearchedCell:
    name, method, task = (cell.name(key) for key in ("name", "method", "task"))
    grid = cell.mapping("grid")
    for key in grid.values:
        grid.get(key, "a list of values, at least one", lambda v: isinstance(v, list) and len(v) > 0)
    axes = list(grid.values.values())
    trials = []
    for number, trial in enumerate(cell.mappings("trials")):
        values = trial.get(
            "values", "a value of the grid for each of its settings",
            lambda v: isinstance(v, list) and len(v) == len(axes) and all(x in a for x, a in zip(v, axes, strict=True)),
        )  # fmt: skip
        run_id = trial.name("run_id")
        results = tuple(_directory(runs, task, name, method, run_id, seed).read_result() for seed in seeds)
        trials.append(Trial(number, dict(zip(grid.values, values, strict=True)), run_id, results, prunes))
    return SearchedCell(
        encoder=cell.text("encoder"), name=name, method=method, task=task, recipe=cell.text("recipe"),
        source=cell.text("source"), settings=cell.mapping("settings").values,
        learning_rate=cell.number("learning_rate"), grid=grid.values, planned=cell.integer("planned", 1),
        trials=tuple(trials),
    )  # fmt: skip
