"""The runs under a folder, read into a table."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError, shown
from experiments.benchmark import in_table_order
from experiments.study.table.cells import Cell, Table, beside_controls
from experiments.study.table.contents import Finished, refuse_mixture
from experiments.study.table.wanted import Wanted
from mt_dnn.identity import Identity
from mt_dnn.results import EpochScore, RunResult
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import LATER_SETTINGS, NOT_IDENTITY
from mt_dnn.scores_elsewhere import read_elsewhere


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
        elsewhere = {seed: _elsewhere(run) for seed, run in started.items()}
        cells[key] = Cell(*key, run_id, shown, tuple(sorted(expected)), trials, settings, elsewhere, descriptions)
    cells |= {(part.encoder, part.method, part.task): part for cell in cells.values() for part in cell.parts()}
    refuse_mixture(run for cell in cells.values() for run in finished_runs(cell, runs))
    encoders, methods, tasks = ({key[i] for key in cells} for i in range(3))
    alone_first = sorted(tasks, key=lambda task: ("+" in task, task))
    return Table(
        cells, tuple(sorted(encoders)), beside_controls(methods), tuple(in_table_order(alone_first)),
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
    """Runs of a cell that count, with their identity.

    Raises:
        SettingError: a ``run.json`` does not say so in the form of this version.
    """
    folders, found = run_folders(cell, runs), []
    for result in cell.results:
        identity = Identity.of_description(cell.descriptions.get(result.seed, {}))
        if identity is not None and cell.scored_task != cell.run_task:
            identity = identity.of_task(cell.scored_task)
        if result.done:
            found.append((folders[result.seed], result, identity))
    return found


def run_folders(cell: Cell, runs: Path) -> dict[int, Path]:
    """Seed -> folder of each of a cell's finished runs."""
    parent = runs / cell.run_task / cell.encoder / cell.method / cell.run_id
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
    for one in result.by_task():
        for epoch in (one.best, one.last):
            if epoch is not None:
                _check_mean(seed_dir, epoch.score, one.primary_metric, _scores_of(epoch, one))
    for epoch in (result.best, result.last) if result.tasks else ():
        if epoch is not None:
            means = {one.task: math.fsum(found.values()) / len(found) for one in result.by_task()
                     if (found := _scores_of(epoch, one))}  # fmt: skip
            _check_mean(seed_dir, epoch.score, result.primary_metric, means)
    return _Run(seed_dir, result, description)


def _scores_of(epoch: EpochScore, result: RunResult) -> dict[str, float]:
    """Data set -> primary metric of an epoch, of those that give a result's score."""
    return {dataset: epoch.metrics[dataset][result.primary_metric] for dataset in result.datasets}


def _check_mean(seed_dir: Path, score: float, metric: str, parts: Mapping[str, float]) -> None:
    mean = math.fsum(parts.values()) / len(parts)
    same = math.isclose(mean, score, rel_tol=1e-9, abs_tol=1e-9)
    if not same and not (math.isnan(mean) and math.isnan(score)):
        raise SettingError(
            f"{seed_dir / 'result.json'}: score {score} is not the mean of {metric} over {', '.join(parts)} ({mean}); "
            "delete the file to run again"
        )


def _elsewhere(run: _Run) -> dict[str, Mapping[str, float]]:
    """Scores on other sets; set -> metric -> percent."""
    if run.result is None or not run.result.done:
        return {}
    return {name: score.metrics for name, score in read_elsewhere(run.path, run.result).items()}


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
        config = {**LATER_SETTINGS, **config, "precision": description.get("resolved_precision", config["precision"])}
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
