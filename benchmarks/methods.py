"""Cost of every fine-tuning method: time of a training step and peak memory, over plain fine-tuning's.

    python -m benchmarks.methods --out methods.json --table methods.md

Time: a method and plain fine-tuning take turns on the same batches of 32 rows in one process; the factor is the median
of the ratios within a turn. A step is everything from the batch to the updated weights, clipping included. What a
method does once before the first step is timed apart. Memory: a run of a few steps alone in a fresh process, the
largest resident memory (of torch's allocator on CUDA), over plain fine-tuning's. Every method at its recipe's settings.
Data as in ``benchmarks.packing``.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.benchmark_figures import in_brackets, spread, write_json
from benchmarks.benchmark_parser import PRECISIONS, add_place_arguments, at_least_one, make_parser, some_of
from benchmarks.glue_rows import TASKS, find_data
from benchmarks.machine import machine_facts
from benchmarks.memory import measure
from benchmarks.peers.contender import Contender, open_run
from benchmarks.throughput import synchronize
from data_utils.command_line import status_of
from module.methods import METHODS
from mt_dnn.allocator import keep_memory_between_steps
from mt_dnn.assembly import assemble, pick_device
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets
from mt_dnn.encoder.batch import Batch
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.precision import resolve_precision
from mt_dnn.training_step import TrainingStep

BASE = "vanilla"
SHORT = {"swa.start_epoch": 0}  # what a run of one epoch needs
Step = Callable[[list[Batch]], None]


def build(config: RunConfig, data: Datasets, batches: Sequence[list[Batch]]) -> tuple[Step, float]:
    """A run's step, and the seconds of its method's work before the first one."""
    keep_memory_between_steps()
    device = pick_device(config.device)
    precision = resolve_precision(config.precision, device)
    source = resolve_encoder(config.init_checkpoint)
    parts = assemble(config, [data.task_def], source, device, precision, total_steps=10_000)
    parts.model.n_examples = sum(batch.size for window in batches for batch in window)
    parts.model.passes = lambda: iter(batches)
    step = TrainingStep(parts, config.global_grad_clipping)
    synchronize()
    started = time.perf_counter()
    parts.method.before_fit(parts.context)
    synchronize()
    before = time.perf_counter() - started

    def train(window: list[Batch]) -> None:
        step(window)
        parts.context.step += 1

    return train, before


def alternate(steps: dict[str, Step], batches: Sequence[list[Batch]], turns: int) -> dict[str, np.ndarray]:
    """Seconds of each step, (turns,); one turn before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name in list(steps)[:: -1 if turn % 2 else 1]:
            synchronize()
            started = time.perf_counter()
            for window in batches:
                steps[name](window)
            synchronize()
            seconds[name].append((time.perf_counter() - started) / len(batches))
    return {name: np.array(values[1:]) for name, values in seconds.items()}


class Place:
    """The setting in which all methods are measured: options, data, and a folder to write into."""

    def __init__(self, options: argparse.Namespace, folder: Path, scratch: Path) -> None:
        self.options, self.folder, self.scratch = options, folder, scratch

    def open(self, method: str) -> tuple[RunConfig, Datasets]:
        """A method's run at its recipe's settings."""
        options = self.options
        short = [(key.partition("."), value) for key, value in SHORT.items()]
        config, data = open_run(
            Contender(method, "ours", method, method), options.task, encoder=options.encoder, data_dir=self.folder,
            cache_dir=self.scratch / "cache", rows=options.rows, precision=options.precision, device=options.device,
        )  # fmt: skip
        settings = {
            name: replace(own, **{key: value for (part, _, key), value in short if part == name})
            for name, own in config.method_settings.items()
        }
        return replace(config, method_settings=settings), data

    def peak(self, method: str) -> int:
        """Most memory of a run alone in a process, bytes."""
        config, data = self.open(method)
        own = self.scratch / method
        own.mkdir()
        found = measure(Contender(method, "ours", method, method).builder(config, data, own), self.options.threads, own)
        return found.get("cuda", found["rss"])

    def times(self, method: str) -> dict[str, Any]:
        """Step times of a method and of plain fine-tuning in turns."""
        runs = {name: self.open(name) for name in (BASE, method)}
        config, data = runs[BASE]
        device = pick_device(config.device)
        precision = resolve_precision(config.precision, device)
        source = resolve_encoder(config.init_checkpoint)
        encoder = assemble(config, [data.task_def], source, device, precision, total_steps=1).network.encoder
        rows = np.arange(self.options.rows).reshape(-1, config.batch_size)
        batches = [[encoder.batch(data.train, part, device)] for part in rows]
        built = {name: build(c, d, batches) for name, (c, d) in runs.items()}
        seconds = alternate({name: step for name, (step, _) in built.items()}, batches, self.options.turns)
        return {
            "step_ms": spread(1e3 * seconds[method]),
            "time_factor": spread(seconds[method] / seconds[BASE]),
            "seconds_before_training": built[method][1],
        }


def table(costs: dict[str, dict[str, Any]]) -> str:
    """The costs in Markdown."""
    lines = [
        "| method | step, ms | time over vanilla | memory over vanilla | before training, s |",
        "|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        factor = cost["time_factor"]
        lines.append(
            f"| {name} | {cost['step_ms']['median']:.0f} | {factor['median']:.2f} ({in_brackets(factor, 2)}) "
            f"| {cost['memory_factor']:.2f} | {cost['seconds_before_training']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser("methods", __doc__)
    names = [name for name in METHODS if name != BASE]
    parser.add_argument("--methods", type=some_of(names), default=names, help="default: all but vanilla")
    parser.add_argument("--task", choices=TASKS, default="cola", help="default: %(default)s")
    parser.add_argument("--rows", type=at_least_one, default=128, help="rows of a turn, in 32s; default: %(default)s")
    parser.add_argument("--turns", type=at_least_one, default=5, help="turns that count; default: %(default)s")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: %(default)s")
    add_place_arguments(parser)
    parser.add_argument("--table", type=Path, help="Markdown file for the table")
    options = parser.parse_args(argv)
    if options.rows % 32:
        parser.error(f"argument --rows: {options.rows} is no multiple of 32, the recipes' batch size")
    if options.threads:
        torch.set_num_threads(options.threads)
    costs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        data, folder = find_data(options.data_dir, scratch, [options.task])
        print(f"{data}, {options.task}, {options.encoder}, {options.precision}, {torch.get_num_threads()} threads")
        place = Place(options, folder, scratch)
        base = place.peak(BASE)
        for method in options.methods:
            peak = place.peak(method)
            costs[method] = {**place.times(method), "peak_mib": peak / 2**20, "memory_factor": peak / base}
            gc.collect()
            print(table({method: costs[method]}).splitlines()[-1], flush=True)
            result = {"machine": machine_facts(), "data": data, "encoder": options.encoder, "task": options.task}
            write_json(options.out, {**result, "precision": options.precision, "methods": costs})
            if options.table:
                options.table.write_text(table(costs), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(status_of(main))
