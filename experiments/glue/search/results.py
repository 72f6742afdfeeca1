"""What a search has found: ``search.json`` and the runs that it names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import Any

from data_utils.errors import SettingError
from experiments.glue.table.contents import Finished, refuse_mixture
from mt_dnn.identity import read_identity
from mt_dnn.results import RunDirectory, RunResult, Status


class TrialStatus(StrEnum):
    """How far a trial is."""

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
        """Done when every seed is; a pruned seed makes a pruned trial once every seed is over."""
        if not all(is_over(result, self.prunes) for result in self.results):
            return TrialStatus.MISSING
        pruned = any(result is not None and result.status is Status.PRUNED for result in self.results)
        return TrialStatus.PRUNED if pruned else TrialStatus.DONE

    @property
    def score(self) -> float:
        """What trials are chosen by: mean over the seeds of the best epoch's score, percent.

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
    """Where that recipe's numbers come from."""
    settings: Mapping[str, Any]
    """Everything that the trials have in common, as in a recipe."""
    learning_rate: float
    """Of the settings in common; what the trials have where the grid has none."""
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
        return self.count(TrialStatus.DONE) + self.count(TrialStatus.PRUNED) == self.planned

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
    """A whole search."""

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

    @property
    def is_complete(self) -> bool:
        """Whether every planned trial is over."""
        return all(cell.is_complete for cell in self.cells)


def is_over(result: RunResult | None, prunes: bool) -> bool:
    """Whether a search has nothing left to do for a run."""
    return result is not None and (result.done or (prunes and result.status is Status.PRUNED))


def read_search(search_json: Path, runs: Path | None = None) -> Search:
    """Read ``search.json`` and the results of its runs.

    Args:
        search_json: The file.
        runs: Folder of the runs, where it is not the one that the file names.

    Raises:
        SettingError: not a search's file, or one that cannot be read; or a damaged result.
    """
    try:
        text = search_json.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingError(
            f"search_json {search_json}: {error.strerror}; give the search.json that study --search wrote into its "
            "--results_dir"
        ) from None
    try:
        content = json.loads(text)
        folder, prunes = runs or Path(content["output_dir"]), content["prune_after"] is not None
        seeds = tuple(content["seeds"])
        cells = tuple(_cell(values, folder, seeds, prunes) for values in content["cells"])
        refuse_mixture(run for cell in cells for run in _finished(cell, folder, seeds))
        return Search(
            content["sampler"], content["sampler_seed"], seeds, content["holdout"], content["prune_after"], cells
        )
    except SettingError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{search_json} is not a search.json ({type(error).__name__}: {error})") from None


def _directory(runs: Path, values: Mapping[str, Any], run_id: str, seed: int) -> RunDirectory:
    return RunDirectory(runs / values["task"] / values["name"] / values["method"] / run_id / f"seed={seed}")


def _finished(cell: SearchedCell, runs: Path, seeds: Sequence[int]) -> Iterator[Finished]:
    """Runs of a cell that are over, with what they were made of."""
    place = {"task": cell.task, "name": cell.name, "method": cell.method}
    for trial in cell.trials:
        for seed, result in zip(seeds, trial.results, strict=True):
            if result is not None and is_over(result, prunes=True):
                directory = _directory(runs, place, trial.run_id, seed)
                yield directory.path, result, read_identity(directory)


def _cell(values: Mapping[str, Any], runs: Path, seeds: Sequence[int], prunes: bool) -> SearchedCell:
    trials = tuple(
        Trial(
            number,
            dict(zip(values["grid"], given["values"], strict=True)),
            given["run_id"],
            tuple(_directory(runs, values, given["run_id"], seed).read_result() for seed in seeds),
            prunes,
        )
        for number, given in enumerate(values["trials"])
    )
    return SearchedCell(**{**values, "trials": trials})
