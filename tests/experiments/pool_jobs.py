"""Jobs for a pool and a display that remembers; workers import this module, so it needs no slow library."""

from pathlib import Path

from experiments.study.launch.job import Job
from experiments.study.launch.worker import Ended
from mt_dnn.config import RunConfig
from mt_dnn.run_id import run_dir


class Recorder:
    """A display that remembers."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, Ended]] = []
        self.messages: list[str] = []
        self.steps: dict[str, int] = {}
        self.taken: list[str] = []
        self.waiting: list[str] = []

    def started(self, job: Job) -> None:
        self.taken.append(job.label)

    def put_back(self, job: Job) -> None:
        self.waiting.append(job.label)

    def tick(self) -> None:
        pass

    def advanced(self, job: Job, step: int, total_steps: int) -> None:
        self.steps[job.label] = step

    def ended(self, job: Job, ended: Ended) -> None:
        self.ends.append((job.label, ended))

    def message(self, text: str) -> None:
        self.messages.append(text)


def make_jobs(output_dir: Path, seeds: int = 2, method: str = "vanilla", task: str = "cola") -> list[Job]:
    configs = [
        RunConfig(train_datasets=task, method=method, seed=seed, output_dir=output_dir) for seed in range(1, seeds + 1)
    ]
    return [Job(config, run_dir(config), steps=3, cost=float(config.seed)) for config in configs]
