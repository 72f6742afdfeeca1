"""A search over recipes' grids: trials are ordinary runs, so that it goes on where it was stopped.

The study's ``--search`` comes here. Every (encoder, method, task) gets its trials from a sampler; their runs go through
the study's pool. ``search.json`` names all of them, and is what the tables are made of.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError, shown
from data_utils.json_file import write_json
from data_utils.task_def import load_task_defs
from experiments.study.launch.job import Job
from experiments.study.launch.pool import Report
from experiments.study.launch.worker import RunFunction
from experiments.study.plan import describe
from experiments.study.recipe import Recipe, of_task, task_settings
from experiments.study.search.pruning import PrunedRun
from experiments.study.search.samplers import Planned, Sampler, grid_points, quasi_random_points
from experiments.study.search.space import Point, Space, search_space
from experiments.study.search.trials import Trial, TrialStatus, read_search
from mt_dnn.config import RunConfig
from mt_dnn.identity import finished_result
from mt_dnn.run_id import run_dir, run_id
from mt_dnn.run_reference import encoder_name

_LIMIT = 2**31
Wrap = Callable[[RunFunction], RunFunction]
Compute = Callable[[Sequence[Job], int, Wrap], tuple[Report, int]]
"""Computes runs, of so many altogether, with a wrapped run function; returns the report, and the exit status of a stop
by a signal or 0."""


@dataclass(slots=True)
class _Cell:
    """The search of one (encoder, method, task)."""

    recipe: Recipe
    bases: tuple[Job, ...]
    """One run per seed, with the settings that all trials share."""
    settings: Mapping[str, Any]
    space: Space
    sampler: Sampler
    prunes: bool
    points: tuple[Point, ...] = ()
    """Those asked for so far."""
    configured: dict[Point, tuple[Job, ...]] = field(default_factory=dict)

    @property
    def config(self) -> RunConfig:
        return self.bases[0].config

    def jobs(self, point: Point) -> tuple[Job, ...]:
        """The runs of a point, one per seed."""
        if point not in self.configured:
            note = " ".join(f"{key}={value}" for key, value in self.space.settings(point).items())
            configs = [self.space.configure(base.config, point) for base in self.bases]
            self.configured[point] = tuple(
                dataclasses.replace(base, config=config, folder=run_dir(config), note=note)
                for base, config in zip(self.bases, configs, strict=True)
            )
        return self.configured[point]

    def run_id(self, point: Point) -> str:
        return run_id(self.jobs(point)[0].config)

    def advance(self) -> None:
        """Ask for points until there is one whose trial is not over, or no more come."""
        while (points := tuple(self.sampler.ask(self.told()))) != self.points:
            self.points = points

    def told(self) -> dict[Point, float]:
        """Scores of the points whose trials are over."""
        scores = {}
        for number, point in enumerate(self.points):
            results = tuple(finished_result(job.config, self.prunes) for job in self.jobs(point))
            trial = Trial(number, self.space.settings(point), self.run_id(point), results, self.prunes)
            if trial.status is not TrialStatus.MISSING:
                scores[point] = trial.score
        return scores

    def missing(self) -> list[Job]:
        """Runs that are still to do, of the points asked for so far."""
        jobs = [job for point in self.points for job in self.jobs(point)]
        return [job for job in jobs if finished_result(job.config, self.prunes) is None]

    def describe(self) -> dict[str, Any]:
        """The cell's part of ``search.json``: the fields of :class:`experiments.study.search.trials.SearchedCell`."""
        config = self.config
        return {
            "encoder": self.recipe.encoder,
            "name": config.encoder,
            "method": config.method,
            "task": config.task,
            "recipe": self.recipe.name,
            "source": self.recipe.source,
            "settings": self.settings,
            "learning_rate": config.learning_rate,
            "grid": {axis.key: list(axis.values) for axis in self.space.axes},
            "planned": self.sampler.trials,
            "trials": [
                {"run_id": self.run_id(point), "values": list(self.space.settings(point).values())}
                for point in self.points
            ],
        }


def run_search(
    recipes: Sequence[Recipe],
    jobs: Sequence[Job],
    overrides: Mapping[str, Any],
    out: Path,
    chosen: argparse.Namespace,
    compute: Compute,
) -> int:
    """Search, and write the tables, the figures and the chosen settings.

    Args:
        recipes: The recipes with the grids.
        jobs: Their runs without a search, one per task and seed of the search.
        overrides: ``--set``; settings in it are not searched.
        out: Folder of the search's files.
        chosen: The study's command line.
        compute: Computes runs.

    Returns:
        The exit status: 0 if every trial is over, 1 if some failed, else that of a stop by a signal.

    Raises:
        SettingError: a setting is wrong, or the methods would get unequal numbers of trials.
    """
    _check_arguments(chosen)
    cells = _cells(recipes, jobs, overrides, out, chosen)
    _check_one_holdout(cells)
    if not chosen.unequal_grids:
        _check_equal(cells)
    if chosen.dry_run:
        _list(cells)
        return 0
    failures: dict[Path, tuple[Job, str]] = {}
    while True:
        for cell in cells:
            cell.advance()
        out.mkdir(parents=True, exist_ok=True)
        described = describe(
            chosen, sampler=chosen.search, sampler_seed=chosen.sampler_seed,
            seeds=[base.config.seed for base in cells[0].bases], holdout=cells[0].config.holdout,
            prune_after=chosen.prune_after, cells=[cell.describe() for cell in cells],
        )  # fmt: skip
        write_json(out / "search.json", described)
        todo = [job for cell in cells for job in cell.missing() if job.folder not in failures]
        if not todo:
            break
        planned = sum(cell.sampler.trials * len(cell.bases) for cell in cells)
        report, stopped = compute(todo, planned, functools.partial(_wrap, cells, chosen.prune_after))
        failures |= {job.folder: (job, error) for job, error in report.failures}
        if stopped:
            return stopped
    from experiments.study.search.search_tables import conclude  # matplotlib: a slow import, wanted only at the end

    status = conclude(read_search(out / "search.json"), out)
    for job, error in failures.values():
        print(f"failed: {job.label}: {error} ({job.folder})", file=sys.stderr)
    return status


def _check_arguments(chosen: argparse.Namespace) -> None:
    """Check the ranges of a search's flags.

    Raises:
        SettingError: one is out of its range or missing.
    """
    if chosen.trials is None and chosen.search != "grid":
        raise SettingError(f"--search {chosen.search} needs --trials, the number of settings to try; legal: >= 1")
    for name in ("trials", "tpe_round", "prune_after"):
        value = getattr(chosen, name)
        if value is not None and not 1 <= value < _LIMIT:
            raise SettingError(f"--{name} is {shown(value)}; legal: an integer in [1, 2^31)")
    if not 0 <= chosen.sampler_seed < _LIMIT:
        raise SettingError(f"--sampler_seed is {shown(chosen.sampler_seed)}; legal: an integer in [0, 2^31)")


def _cells(
    recipes: Sequence[Recipe],
    jobs: Sequence[Job],
    overrides: Mapping[str, Any],
    out: Path,
    chosen: argparse.Namespace,
) -> list[_Cell]:
    defined = load_task_defs(chosen.task_def)
    by_owner = {(encoder_name(recipe.encoder), recipe.method): recipe for recipe in recipes}
    bases: dict[tuple[str, str, str], list[Job]] = {}
    for job in jobs:
        # Weights of trials are not kept unless --set save=... asks for them: there are many.
        config = job.config if "save" in overrides else dataclasses.replace(job.config, save="none")
        key = (config.encoder, config.method, config.task)
        bases.setdefault(key, []).append(dataclasses.replace(job, config=config))
    spaces: dict[tuple[str, str, frozenset[str]], Space] = {}
    cells = []
    for (encoder, method, task), own in bases.items():
        recipe = by_owner[encoder, method]
        fixed = frozenset(of_task(overrides, task, defined))
        if (encoder, method, fixed) not in spaces:
            spaces[encoder, method, fixed] = search_space(recipe, task, fixed, chosen.task_def)
        space = spaces[encoder, method, fixed]
        sampler = _sampler(space, own, out, chosen)
        settings = task_settings(recipe, task, overrides, defined)
        cells.append(_Cell(recipe, tuple(own), settings, space, sampler, chosen.prune_after is not None))
    return cells


def _sampler(space: Space, bases: Sequence[Job], out: Path, chosen: argparse.Namespace) -> Sampler:
    if chosen.search == "grid":
        return Planned(grid_points(space, chosen.trials, chosen.sampler_seed))
    if chosen.search != "tpe":
        return Planned(quasi_random_points(space, chosen.trials, chosen.sampler_seed, chosen.search))
    from experiments.study.search.tpe import TpeSampler

    config = bases[0].config
    # Whatever changes the scores or the suggestions is another study in the same journal.
    identity = [
        run_id(space.configure(config, space.point(0))),
        [(axis.key, axis.values) for axis in space.axes],
        [base.config.seed for base in bases],
        [chosen.sampler_seed, chosen.tpe_round, chosen.prune_after],
    ]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    name = f"{config.encoder} {config.method} {config.task} {digest}"
    return TpeSampler(out / "tpe.journal", name, space, chosen.trials, chosen.sampler_seed, chosen.tpe_round)


def _check_one_holdout(cells: Sequence[_Cell]) -> None:
    """Refuse a search that chooses here on one set and there on another.

    Raises:
        SettingError: as it says.
    """
    shares = {cell.config.holdout for cell in cells}
    if len(shares) > 1:
        raise SettingError(f"holdout is {' and '.join(map(str, shares))} in one search: give one share with --holdout")


def _check_equal(cells: Sequence[_Cell]) -> None:
    """Refuse unequal numbers of trials for the methods of one encoder and task.

    Raises:
        SettingError: names the methods and their numbers.
    """
    trials: dict[tuple[str, str], dict[str, int]] = {}
    for cell in cells:
        trials.setdefault((cell.config.encoder, cell.config.task), {})[cell.config.method] = cell.sampler.trials
    for (encoder, task), by_method in trials.items():
        if len(set(by_method.values())) > 1:
            listed = ", ".join(f"{method} {n}" for method, n in by_method.items())
            raise SettingError(
                f"{encoder}, {task}: the methods would get unequal numbers of trials ({listed}), so the larger search "
                f"may win by itself: give --trials {min(by_method.values())}, recipes with larger grids, or "
                "--unequal_grids to search all the same"
            )


def _wrap(cells: Sequence[_Cell], prune_after: int | None, run: RunFunction) -> RunFunction:
    if prune_after is None:
        return run
    ids = {(c.config.encoder, c.config.method, c.config.task): tuple(map(c.run_id, c.points)) for c in cells}
    return PrunedRun(run, prune_after, ids)


def _list(cells: Sequence[_Cell]) -> None:
    """Print the trials' runs, done and missing, for ``--dry_run``."""
    done = todo = steps = later = 0
    for cell in cells:
        cell.points = tuple(cell.sampler.asked())
        missing: Collection[Path] = {job.folder for job in cell.missing()}
        for job in (job for point in cell.points for job in cell.jobs(point)):
            print(f"{'missing' if job.folder in missing else 'done   '}  {job.label}  {job.folder}")
        unasked = (cell.sampler.trials - len(cell.points)) * len(cell.bases)
        done += len(cell.points) * len(cell.bases) - len(missing)
        todo += len(missing)
        later += unasked
        steps += (len(missing) + unasked) * cell.bases[0].steps
    asked_later = f", {later} that TPE has not asked for yet" if later else ""
    print(f"{done + todo + later} runs: {done} done, {todo} missing{asked_later}, with {steps} steps")
