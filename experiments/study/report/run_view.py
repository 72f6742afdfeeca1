"""One run as the report shows it: its state and its log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError
from experiments.study.fields import is_number
from experiments.study.table.cells import Cell, Table
from mt_dnn.metrics_log import read_records
from mt_dnn.results import RunResult
from mt_dnn.run_directory import RunDirectory

_SHORTEST_SILENCE = 600.0  # seconds without a sign of life before a run is called silent
_LONGEST_SILENCE = 7200.0


class State(StrEnum):
    """The state of a run. The first four are those of ``result.json``."""

    OK = "ok"
    DEGENERATE = "degenerate"
    DIVERGED = "diverged"
    FAILED = "failed"
    RUNNING = "running"
    SILENT = "silent"
    MISSING = "missing"


MEANINGS = {
    State.OK: "finished",
    State.DEGENERATE: "finished; one value predicted for every dev example, or labels all the same (counted)",
    State.DIVERGED: "a loss or gradient became NaN or infinite (counted; NaN where there is no score)",
    State.FAILED: "ended with an error (not counted); the next start of the study tries it again",
    State.RUNNING: "started, no result yet, and it has written something lately",
    State.SILENT: "started, no result, and nothing written for longer than two checkpoints take: stopped or killed; "
    "the same command goes on with it",
    State.MISSING: "wanted by the study, not started",
}


@dataclass(frozen=True, slots=True)
class Log:
    """The content of ``metrics.jsonl``."""

    curve: Mapping[int, float] = field(default_factory=dict)
    """Epoch -> dev score, percent."""
    losses: tuple[tuple[int, float], ...] = ()
    """(step, mean training loss since the line before)."""
    step: int = 0
    """Of the last line; 0 without one."""
    epoch: int = 0
    steps_per_epoch: int | None = None
    """Known once an epoch has ended."""


@dataclass(frozen=True, slots=True)
class RunView:
    """One seed of one cell."""

    cell: Cell
    seed: int
    folder: Path
    state: State
    result: RunResult | None
    log: Log
    description: Mapping[str, Any]
    """``run.json``; empty when it is not there or cannot be read."""
    total_steps: int | None
    silence: float | None
    """Seconds since it last wrote anything; None when it is over or was never started."""

    @property
    def reason(self) -> str:
        """The reason of a failure or divergence, in one line; else empty."""
        return (self.result.error or "") if self.result is not None else ""

    @property
    def stop(self) -> str:
        """The epoch at which patience ended the run, as a text; else empty."""
        if self.result is None or not self.result.stopped_early or self.result.last is None:
            return ""
        return f"stopped early, after epoch {self.result.last.epoch} of {self.result.epochs}"


def view_runs(table: Table, runs: Path, now: float) -> list[RunView]:
    """Every run that the table wants, in its order.

    Args:
        table: As :func:`experiments.study.table.gathering.gather` reads it.
        runs: ``output_dir`` of its runs.
        now: Seconds since the epoch.
    """
    order = ((e, m, t) for e in table.encoders for t in table.run_tasks for m in table.methods)
    cells = [table.cells[key] for key in order if key in table.cells]
    return _with_totals([_view(cell, seed, runs, now) for cell in cells for seed in cell.expected])


def _view(cell: Cell, seed: int, runs: Path, now: float) -> RunView:
    directory = RunDirectory(runs / cell.task / cell.encoder / cell.method / cell.run_id / f"seed={seed}")
    result = next((r for r in cell.results if r.seed == seed), None)
    description = cell.descriptions.get(seed, {})
    if result is not None and directory.metrics_jsonl.is_file():
        directory.check_file(directory.metrics_jsonl, result)
    log = read_log(directory.metrics_jsonl)
    silence = None
    if result is not None:
        state = State(result.status.value)
    elif not directory.run_json.is_file():
        state = State.MISSING
    else:
        silence = max(0.0, now - _last_sign_of_life(directory))
        state = State.SILENT if silence > _patience(description) else State.RUNNING
    total = result.steps if result is not None and result.last is not None else None
    return RunView(cell, seed, directory.path, state, result, log, description, total, silence)


def read_log(metrics_jsonl: Path) -> Log:
    """Read ``metrics.jsonl``; a line that is still being written, or is no record, is left out."""
    if not metrics_jsonl.is_file():  # a FIFO would be waited for
        return Log()
    try:
        records = read_records(metrics_jsonl, strict=False)
    except SettingError:
        return Log()
    curve: dict[int, float] = {}
    losses: list[tuple[int, float]] = []
    step = epoch = 0
    per_epoch = None
    for record in records:
        try:
            step, epoch = int(record["step"]), int(record["epoch"])
            if "evaluation" in record:
                curve[epoch] = float(record["score"])
                per_epoch = step // epoch
            elif "loss" in record:
                losses.append((step, float(record["loss"])))
        except (ValueError, KeyError, OverflowError, ZeroDivisionError):  # no step, or one that is no number
            continue
    return Log(curve, tuple(losses), step, epoch, per_epoch)


def _last_sign_of_life(directory: RunDirectory) -> float:
    """Newest change in the run's folder, seconds since the epoch."""
    newest = 0.0
    for path in (directory.path, directory.run_json, directory.metrics_jsonl, directory.checkpoints,
                 directory.path / "log.txt"):  # fmt: skip
        try:
            newest = max(newest, path.stat().st_mtime)
        except OSError:
            continue
    return newest


def _patience(description: Mapping[str, Any]) -> float:
    """Seconds after which a run that writes nothing is silent: twice the time between its checkpoints."""
    seconds = config_of(description).get("checkpoint_seconds")
    between = float(seconds) if is_number(seconds) else 0.0  # type: ignore[arg-type]
    return min(max(2 * between, _SHORTEST_SILENCE), _LONGEST_SILENCE)


def config_of(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration in a ``run.json``; empty where there is none."""
    config = description.get("config")
    return config if isinstance(config, dict) else {}


def _with_totals(views: Iterable[RunView]) -> list[RunView]:
    """Fill in the number of steps that unfinished runs will make.

    It follows from a run's own epochs so far, else from those of another run that uses as much of the same task.
    """
    views = list(views)
    known = {_volume(v): v.log.steps_per_epoch for v in views if v.log.steps_per_epoch}
    filled = []
    for view in views:
        per_epoch = view.log.steps_per_epoch or known.get(_volume(view))
        epochs = config_of(view.description).get("epochs")
        if view.total_steps is None and per_epoch and isinstance(epochs, int):
            view = replace(view, total_steps=per_epoch * epochs)
        filled.append(view)
    return filled


def _volume(view: RunView) -> tuple[str, ...]:
    keys = ("batch_size", "grad_accumulation_step", "train_fraction", "train_size", "data_dir")
    return (view.cell.task, *(json.dumps(config_of(view.description).get(key)) for key in keys))
