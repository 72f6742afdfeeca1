"""Runs per hour with 1, 2, 3 and 4 workers on one device, through the study's own pool.

    python -m benchmarks.sharing --device cuda:0 --out sharing.json
    python -m benchmarks.sharing --device cpu                          a tiny encoder; where no GPU is at hand

Each worker is a process of its own with its own encoder, as in a study with ``--workers_per_device``. Every number of
workers computes the same list of short runs (batch 32, generated rows, no weights kept). As many runs as there are
workers come first and are not counted, for they pay for the start; runs per hour are the other runs over the time from
the end of those to the end of the last one. ``--runs`` is a multiple of every number of workers, so that none is idle
before the end. The numbers of workers take turns. The best one is for a study's ``--workers_per_device``.

On a GPU the default encoder has BERT-base's shape and random weights. One process cannot fill a large GPU with small
batches; several fill the gaps. With NVIDIA's MPS their kernels run side by side, without it they take turns; the output
says whether it was on. On a CPU the workers share its cores evenly.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.benchmark_figures import write_json
from benchmarks.benchmark_parser import make_parser
from benchmarks.machine import machine_facts
from benchmarks.random_encoder import SHAPES, make_encoder, write_rows
from data_utils.command_line import status_of
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from experiments.study.launch.crew import LocalCrew
from experiments.study.launch.job import Job
from experiments.study.launch.pool import Pool
from experiments.study.launch.slots import Slot, usable_cores
from experiments.study.launch.worker import Ended, Outcome
from mt_dnn.assembly import pick_device
from mt_dnn.config import RunConfig
from mt_dnn.data import open_datasets
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.run import run
from mt_dnn.run_id import run_dir

BATCH = 32
DEV_ROWS = 64


class Quiet:
    """A pool's display that keeps the moments at which runs end, and the reasons of failures."""

    def __init__(self) -> None:
        self.moments: list[float] = []
        self.failures: list[str] = []

    def _ignore(self, *arguments: object) -> None:
        """Show nothing."""

    started = put_back = advanced = tick = _ignore

    def ended(self, job: Job, ended: Ended) -> None:
        """Keep the moment, and the reason of a failure."""
        self.moments.append(time.perf_counter())
        if ended.outcome is Outcome.FAILED:
            self.failures.append(f"{job.label}: {ended.error}")

    def message(self, text: str) -> None:
        """Print a line of the pool."""
        print(text, flush=True)


def make_jobs(options: argparse.Namespace, encoder: Path, data: Path, runs: Path, count: int) -> list[Job]:
    """Short runs, one per seed, equal for every number of workers."""
    configs = [
        RunConfig(
            init_checkpoint=str(encoder), task_def=GLUE_TASK_DEF, data_dir=data, output_dir=runs,
            train_size=options.steps * BATCH, epochs=1, batch_size=BATCH, method=options.method,
            optimizer=options.optimizer, seed=seed, save="none", tensorboard=False, checkpoint_seconds=1e9,
        )
        for seed in range(count)
    ]  # fmt: skip
    return [Job(config, run_dir(config), options.steps, cost=1.0) for config in configs]


def time_pool(options: argparse.Namespace, encoder: Path, data: Path, scratch: Path, workers: int) -> float:
    """Runs per hour of one pool.

    The first run of each worker pays for its start; the clock runs from the end of the last of those, and counts the
    runs that end after it.

    Raises:
        RuntimeError: a run failed.
    """
    runs = scratch / "runs"
    display = Quiet()
    threads = max(1, usable_cores() // workers)
    pool = Pool(LocalCrew(run, [Slot(options.device, threads) for _ in range(workers)]), display)
    try:
        pool.compute(make_jobs(options, encoder, data, runs, workers + options.runs))
    finally:
        shutil.rmtree(runs, ignore_errors=True)
    if display.failures:
        raise RuntimeError(f"{workers} workers: {display.failures[0]}")
    started, *ends = display.moments[workers - 1 :]
    return 3600 * len(ends) / (ends[-1] - started)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = make_parser("sharing", __doc__)
    parser.add_argument("--device", default="auto", help="cuda:<index>, cpu or auto; default: %(default)s")
    parser.add_argument("--encoder", help="name or folder; default: bert-base's shape on CUDA, a tiny one on the CPU")
    parser.add_argument("--workers", default="1,2,3,4", help="numbers of workers; default: %(default)s")
    parser.add_argument("--runs", type=int, default=12, help="timed runs of each number; default: %(default)s")
    parser.add_argument("--steps", type=int, default=100, help="steps of a run; default: %(default)s")
    parser.add_argument("--turns", type=int, default=3, help="turns of each number; default: %(default)s")
    parser.add_argument("--method", default="pats", help="default: %(default)s")
    parser.add_argument("--optimizer", default="adamax", help="default: %(default)s")
    options = parser.parse_args(arguments)
    counts = [int(part) for part in options.workers.split(",")]
    for count in counts:
        if count < 1 or options.runs < 1 or options.runs % count:
            parser.error(f"argument --runs: {options.runs} is no multiple of {count} workers: some would be idle")
    device = pick_device(options.device)
    options.device = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        shape = "tiny" if device.type == "cpu" else "bert-base"
        encoder = resolve_encoder(options.encoder or str(make_encoder(scratch / shape, shape))).folder
        data = scratch / "canonical_data"
        data.mkdir()
        write_rows(data / "cola_train.tsv", max(options.steps * BATCH, 2 * BATCH))
        write_rows(data / "cola_dev.tsv", DEV_ROWS)
        open_datasets(make_jobs(options, encoder, data, scratch / "runs", 1)[0].config)  # the cache, once for all
        rates: dict[int, list[float]] = {}
        for count in counts * options.turns:
            rates.setdefault(count, []).append(time_pool(options, encoder, data, scratch, count))
            report(options, shape, rates)  # after each pool: figures stay if a later one is cut off


def report(options: argparse.Namespace, shape: str, rates: dict[int, list[float]]) -> None:
    """Print and write what is measured so far: runs per hour of each number of workers, a value per turn."""
    counts = list(rates)
    medians = {count: statistics.median(values) for count, values in rates.items()}
    best = max(medians, key=medians.__getitem__)
    for count in counts:
        print(
            f"{count} workers on {options.device}: {medians[count]:7.1f} runs per hour "
            f"({min(rates[count]):.1f}-{max(rates[count]):.1f}), {medians[count] / medians[counts[0]]:.2f} x "
            f"that of {counts[0]}"
        )
    print(f"best: {best} workers per device (--workers_per_device {best})")
    result = {
        "machine": machine_facts(),
        "device": options.device,
        "mps": "CUDA_MPS_PIPE_DIRECTORY" in os.environ or Path("/tmp/nvidia-mps").exists(),
        "encoder": options.encoder or f"random weights, {shape}: {SHAPES[shape]}",
        "batch_size": BATCH,
        "method": options.method,
        "optimizer": options.optimizer,
        "steps_per_run": options.steps,
        "runs": options.runs,
        "runs_per_hour": {str(count): {"median": medians[count], "turns": rates[count]} for count in counts},
        "best_workers_per_device": best,
    }
    write_json(options.out, result)


if __name__ == "__main__":
    sys.exit(status_of(main))
