"""Runs without training: results on disk as the real ones leave them, and a run function that misbehaves on request."""

import json
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError
from mt_dnn.config import RunConfig
from mt_dnn.identity import Identity, finished_result, identity_of
from mt_dnn.interrupt import Interrupted, StopRequest
from mt_dnn.results import EpochScore, RunResult, Status
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir, run_id
from tests.edits import edit_json


@dataclass(frozen=True)
class Progress:
    """What the pool reads of the trainer's Progress."""

    step: int
    total_steps: int


METRICS = {"cola": "MCC", "mrpc": "F1", "stsb": "Pearson", "qqp": "F1"}
DATASETS = {"mnli": ["mnli_matched_dev", "mnli_mismatched_dev"]}


def make_result(
    config: RunConfig, best: float | None, last: float | None, status: Status = Status.OK, error: str | None = None
) -> RunResult:
    """A result with these scores; MNLI's two dev sets lie one point either side of its score."""
    metric = METRICS.get(config.task, "ACC")
    datasets = DATASETS.get(config.task, [f"{config.task}_dev"])

    def epoch(number: int, score: float | None) -> EpochScore | None:
        if score is None:
            return None
        shifts = [0.0] if len(datasets) == 1 else [1.0, -1.0]
        return EpochScore(number, score, {d: {metric: score + s} for d, s in zip(datasets, shifts, strict=True)})

    return RunResult(
        status=status, error=error, task=config.task, encoder=config.encoder, method=config.method, seed=config.seed,
        run_id=run_id(config), recipe=config.recipe, primary_metric=metric, datasets=datasets, epochs=config.epochs,
        steps=10, train_examples=100, seconds=1.0, best=epoch(2, best), last=epoch(3, last),
    )  # fmt: skip


def describe(config: RunConfig, identity: Identity | None = None) -> dict[str, Any]:
    """A ``run.json``; without an identity that of the files which the configuration names, if they are there."""
    if identity is None:
        with suppress(SettingError):
            identity = identity_of(config)
    made_of = {} if identity is None else {"identity": identity.as_dict()}
    return {"run_id": run_id(config), "config": config.as_dict(), **made_of}


def write_run(
    output_dir: Path,
    task: str = "cola",
    method: str = "vanilla",
    seed: int = 1,
    best: float | None = 60.0,
    last: float | None = 59.0,
    status: Status = Status.OK,
    finished: bool = True,
    **settings: Any,
) -> Path:
    """Put a run on disk; returns its folder."""
    settings.setdefault("init_checkpoint", "bert-base-uncased")
    config = RunConfig(train_datasets=task, method=method, seed=seed, output_dir=output_dir, **settings)
    directory = RunDirectory(run_dir(config))
    directory.path.mkdir(parents=True, exist_ok=True)
    directory.start(describe(config, Identity({f"{task}_train.tsv": "a"}, {"n_class": 2}, {"config.json": "b"})))
    if finished:
        directory.write_result(make_result(config, best, last, status))
    for number, score in enumerate((50.0, best, last), start=1):
        if score is not None and math.isfinite(score):
            directory.append_metrics({"step": number, "epoch": number, "score": score, "evaluation": {}})
    return directory.path


def stop_early(folder: Path, epochs: int) -> Path:
    """Let a finished run have stopped before so many epochs, after its third; returns its folder."""
    edit_json(folder / "result.json", stopped_early=True, epochs=epochs)
    return folder


def behave(output_dir: Path, **behaviour: str) -> None:
    """Tell :func:`fake_run` what to do with the runs of a method or seed (``pats="fail"``, ``seed_2="die"``)."""
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "behaviour.json").write_text(json.dumps(behaviour))


def calls(output_dir: Path) -> list[str]:
    """``task method seed pid device threads`` of every call of :func:`fake_run`, in order."""
    path = output_dir / "calls.txt"
    return path.read_text().splitlines() if path.is_file() else []


def fake_run(config: RunConfig, on_progress: Callable[[Progress], None] | None = None) -> RunResult:
    """Stands for ``mt_dnn.run.run``: same files, locks, signals and errors, no training."""
    folder, path = run_dir(config), config.output_dir / "behaviour.json"
    rules = json.loads(path.read_text()) if path.is_file() else {}
    rule = rules.get(f"seed_{config.seed}", rules.get(config.method, rules.get("all", "")))
    directory = RunDirectory(folder)
    with directory.lock(), StopRequest() as stop:
        finished = directory.read_result()
        if finished is not None and finished.done:
            return finished
        with (config.output_dir / "calls.txt").open("a") as file:
            file.write(f"{config.task} {config.method} {config.seed} {os.getpid()} {config.device} {config.threads}\n")
        directory.start(describe(config))
        _misbehave(rule, directory)
        slow = rule in ("slow", "stubborn")
        steps = 400 if slow else 3
        for step in range(1, steps + 1):
            if on_progress is not None:
                on_progress(Progress(step, steps))
            if slow or rule == "brief":
                time.sleep(0.05)
            if stop.asked and rule != "stubborn":
                (folder / "checkpoint").write_text(str(step))
                raise Interrupted(f"stopped at step {step}")
        result = make_result(config, 60.0 + config.seed, 59.0 + config.seed)
        directory.write_result(result)
        return result


def finished_run(config: RunConfig, on_progress: Callable[[Progress], None] | None = None) -> RunResult:
    """Stands for ``mt_dnn.run.run`` on a run that is done: returned for its own data alone."""
    result = finished_result(config)
    assert result is not None
    return result


def _misbehave(rule: str, directory: RunDirectory) -> None:
    once = directory.path / "misbehaved"
    first, _ = not once.exists(), once.touch()
    if rule == "setting":
        raise SettingError("warmup is 2; legal: a share in [0, 1)")
    if rule == "memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")
    if rule == "raise":
        raise RuntimeError("boom\nsecond line")
    if rule == "die" or (rule == "die_once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if rule == "terminate_once" and first:
        os.kill(os.getpid(), signal.SIGTERM)
