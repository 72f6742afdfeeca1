"""Examples per second of whole training: this project's loop against transformers.Trainer and MT-DNN's way.

    python -m benchmarks.throughput --out throughput.json

A turn is one epoch over the same training rows in the same batches of 32, then an evaluation of the same dev rows, by
every contender one after the other; the next turn goes through them backwards, on other rows. The first turn warms up
and is dropped; ratios are of times within a turn, median and quartiles over the turns. Timed on every side: making the
batches, forward, backward, clipping, optimizer (its state included), schedule, evaluation with metrics. Not timed:
reading the encoder, tokenising, building model and trainer. No side writes weights or logs steps.

Examples per second count the training rows over the time of the whole turn. The dev set is cut to the same share of
its rows as the training set. Data as in ``benchmarks.packing``. trainer128 cuts the few longer examples at 128 tokens.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.benchmark_figures import in_brackets, spread, write_json
from benchmarks.benchmark_parser import at_least_one, training_parser
from benchmarks.glue_rows import find_data
from benchmarks.machine import machine_facts
from benchmarks.peers.assignment import Train
from benchmarks.peers.contender import CONTENDERS, Contender, open_run
from data_utils.command_line import status_of
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets

Seconds = dict[str, npt.NDArray[np.float64]]

# Training rows of a turn: about equal times, some twenty minutes in all.
ROWS = {"cola": 640, "mrpc": 192, "rte": 128, "stsb": 384}
DEFAULT = ("vanilla", "pats", "trainer", "mtdnn")


def measure(runs: dict[str, tuple[RunConfig, Datasets]], turns: int, scratch: Path) -> tuple[Seconds, dict[str, Any]]:
    """Let the contenders take turns.

    Args:
        runs: name of a contender to its configuration and rows.
        turns: turns that count, >= 1.
        scratch: folder to write into.

    Returns:
        Seconds of each contender, (turns,), and its dev metrics of the last turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    metrics: dict[str, Any] = {}
    for turn in range(turns + 1):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            config, data = runs[name]
            folder = scratch / f"{turn}-{name}"
            folder.mkdir(parents=True)
            train = CONTENDERS[name].builder(replace(config, seed=turn), data, folder)()
            taken, metrics[name] = timed(train)
            seconds[name].append(taken)
            del train
            gc.collect()  # not in the next one's time
    return {name: np.array(values[1:]) for name, values in seconds.items()}, metrics


def timed(train: Train) -> tuple[float, dict[str, float]]:
    """Seconds of a training, its queued GPU work included, and its metrics."""
    synchronize()
    started = time.perf_counter()
    metrics = train()
    synchronize()
    return time.perf_counter() - started, metrics


def synchronize() -> None:
    """Wait for the GPU where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summarise(seconds: Seconds, rows: int) -> dict[str, Any]:
    """Examples per second of each contender, and how many times as fast each of ours is as each other contender."""
    summary: dict[str, Any] = {}
    ours = [name for name in seconds if CONTENDERS[name].ours]
    for name, values in seconds.items():
        ratios = {one: spread(values / seconds[one]) for one in ours if one != name}
        summary[name] = {"examples_per_second": spread(rows / values), "times_as_fast": ratios}
    return summary


def show(task: str, precision: str, summary: dict[str, Any]) -> None:
    """Print one task and precision, a line per contender."""
    for name, row in summary.items():
        speed = row["examples_per_second"]
        line = f"{task:5} {precision} {name:10} {speed['median']:8.1f}/s ({in_brackets(speed, 1)})"
        for one, ratio in row["times_as_fast"].items():
            line += f"   {one} / {name} {ratio['median']:.2f} ({in_brackets(ratio, 2)})"
        print(line, flush=True)


def benchmark(
    task: str, precision: str, contenders: Sequence[Contender], options: argparse.Namespace, folder: Path, scratch: Path
) -> dict[str, Any]:
    """All figures of one task in one precision."""
    runs = {
        contender.name: open_run(
            contender,
            task,
            encoder=options.encoder,
            data_dir=folder,
            cache_dir=scratch / "cache",
            rows=options.rows or ROWS[task],
            precision=precision,
            device=options.device,
        )
        for contender in contenders
    }
    config, data = next(iter(runs.values()))
    seconds, metrics = measure(runs, options.turns, scratch / f"{task}-{precision}")
    return {
        "training_rows": config.train_size,
        "dev_rows": sum(map(len, data.dev.values())),
        "contenders": summarise(seconds, config.train_size or len(data.train)),
        "dev_metrics_of_last_turn": metrics,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = training_parser(
        "throughput", __doc__, f"{','.join(DEFAULT)}; and trainer128 on cola, whose rows are the shortest"
    )
    parser.add_argument("--rows", type=at_least_one, help=f"training rows of a turn; default: {ROWS}")
    parser.add_argument("--turns", type=at_least_one, default=4, help="turns that count; default: %(default)s")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        data, folder = find_data(options.data_dir, scratch, options.tasks)
        result: dict[str, Any] = {"machine": machine_facts(), "data": data, "encoder": options.encoder, "tasks": {}}
        print(f"{data}, {options.encoder}, {options.device}, {torch.get_num_threads()} threads; examples per second")
        for task in options.tasks:
            names = options.contenders or [*DEFAULT, *(["trainer128"] if task == "cola" else [])]
            for precision in options.precisions:
                figures = benchmark(task, precision, [CONTENDERS[n] for n in names], options, folder, scratch)
                result["tasks"].setdefault(task, {})[precision] = figures
                show(task, precision, figures["contenders"])
    write_json(options.out, result)


if __name__ == "__main__":
    sys.exit(status_of(main))
