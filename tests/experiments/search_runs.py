"""Runs of a search without training: the score follows from the settings, epoch by epoch."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.study.launch.crew import LocalCrew
from experiments.study.launch.job import Job
from experiments.study.launch.pool import Display, Report
from experiments.study.launch.worker import Ended, Outcome
from mt_dnn.config import RunConfig
from mt_dnn.results import EpochScore, RunResult, Status
from mt_dnn.run_directory import RunDirectory, RunLocked
from mt_dnn.run_id import run_dir, run_id
from tests.experiments.fake_runs import describe


def score_of(config: RunConfig) -> float:
    """Highest at learning rate 3e-4 and, for PATS, noise scale 2e-3; a little lower for every other seed."""
    score = 80.0 - 2e4 * abs(config.learning_rate - 3e-4) - 0.01 * config.seed
    pats = config.method_settings.get("pats")
    return score - (1e3 * abs(pats.noise_scale - 2e-3) if pats is not None else 0.0)


def scored_run(
    config: RunConfig,
    on_progress: Callable[[Any], None] | None = None,
    prune: Callable[[int, float], bool] | None = None,
) -> RunResult:
    """Stands for ``mt_dnn.run.run``: same files and locks.

    ``SEARCH_TEST_SLEEP`` makes it take time; with ``SEARCH_TEST_GATE``, a folder, no process ends its first run before
    a second one is in its own.

    Where a part is held out, the dev score is 5 points higher. A learning rate of 1e-2 diverges, one of 2e-2 fails.
    """
    directory = RunDirectory(run_dir(config))
    with directory.lock():
        finished = directory.read_result()
        if finished is not None and (finished.done or (prune is not None and finished.status is Status.PRUNED)):
            return finished
        with (config.output_dir / "calls.txt").open("a") as file:
            file.write(f"{run_id(config)} {config.seed} {os.getpid()}\n")
        directory.start(describe(config))
        directory.metrics_jsonl.unlink(missing_ok=True)
        time.sleep(float(os.environ.get("SEARCH_TEST_SLEEP", "0")))
        if gate := os.environ.get("SEARCH_TEST_GATE"):
            wait_for_another(Path(gate))
        status, best = Status.OK, None
        for number in range(1, config.epochs + 1):
            held_out = score_of(config) - 10.0 * (config.epochs - number)
            best = epoch(config, number, held_out)
            record = {"step": number, "epoch": number, "score": best.score, "evaluation": best.metrics}
            directory.append_metrics(record | ({} if best.held_out is None else {"held_out": held_out}))
            if prune is not None and number < config.epochs and prune(number, best.choice):
                status = Status.PRUNED
                break
        if config.learning_rate == 1e-2:
            status, best = Status.DIVERGED, None
        if config.learning_rate == 2e-2:
            status, best = Status.FAILED, None
        result = RunResult(
            status=status, task=config.task, encoder=config.encoder, method=config.method, seed=config.seed,
            run_id=run_id(config), primary_metric="MCC", datasets=[f"{config.task}_dev"], epochs=config.epochs,
            steps=10, train_examples=100, seconds=1.0, best=best, last=None if status is Status.PRUNED else best,
            error="boom" if status is Status.FAILED else None,
        )  # fmt: skip
        directory.write_result(result)
        return result


def wait_for_another(gate: Path) -> None:
    (gate / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(gate.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)


def epoch(config: RunConfig, number: int, score: float) -> EpochScore:
    """An epoch whose choice is ``score``."""
    if config.holdout is None:
        return EpochScore(number, score, {f"{config.task}_dev": {"MCC": score}})
    metrics = {f"{config.task}_dev": {"MCC": score + 5.0}, f"{config.task}_holdout": {"MCC": score}}
    return EpochScore(number, score + 5.0, metrics, score)


class PoolInProcess:
    """The pool's interface without processes: one run after the other, in the order given."""

    killed = False

    def __init__(self, crew: LocalCrew, display: Display, retries: int) -> None:
        self._run, self._display = crew._run, display

    def compute(self, jobs: list[Job]) -> Report:
        report = Report()
        queue = list(jobs)
        while queue:
            job = queue.pop(0)
            try:
                result = self._run(job.config)
            except RunLocked:  # another process has it
                queue.append(job)
                time.sleep(0.02)
                continue
            failed = result.status is Status.FAILED
            if failed:
                report.failures.append((job, result.error or ""))
            report.done += not failed
            score = result.best.score if result.best is not None else None
            outcome = Outcome.FAILED if failed else Outcome.DONE
            self._display.ended(job, Ended(outcome, result.status.value, score, result.error or ""))
        return report
