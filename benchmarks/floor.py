"""Whole training steps over their floor: the time of the matrix products that they cannot do without.

    python -m benchmarks.floor --tasks cola,rte --threads 2 --out floor.json

The products are those of a real step on a real batch: linear layers forward, gradients of input and weight, attention's
two products and their four of backward. They are recorded once per batch with their sizes, strides and places in
memory, and then computed alone on made-up numbers, in the same order. A step (from the batch to the updated weights,
clipping included) and its floor take turns in one process, so that a busy machine slows both; ratios are within a turn,
medians over the turns on all batches. The first turn on each batch warms up and is dropped. Batches are the first of a
run's first epoch; train.py makes a batch beside the step before it, so that is in neither time. The profile gives each
kind of work its share of a step under torch's profiler. Data as in ``benchmarks.packing``. On the CPU alone.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.benchmark_figures import spread, write_json
from benchmarks.benchmark_parser import add_place_arguments, at_least_one, make_parser, some_of
from benchmarks.glue_rows import TASKS, find_data
from benchmarks.machine import machine_facts
from benchmarks.matrix_products import record, replay
from benchmarks.methods import Step, build
from benchmarks.peers.contender import CONTENDERS, open_run
from benchmarks.step_profile import KINDS, shares
from data_utils.batching import epoch_batches
from data_utils.command_line import status_of
from mt_dnn.assembly import pick_device
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets
from mt_dnn.encoder.batch import Batch
from mt_dnn.encoder.model import load_encoder
from mt_dnn.encoder.source import resolve_encoder

METHODS = ("vanilla", "pats")
FLOOR = "floor"


def take_turns(contenders: dict[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    """Seconds of each contender, one per turn; a turn before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns + 1):
        for name in list(contenders)[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in seconds.items()}


def first_batches(config: RunConfig, data: Datasets, n: int) -> list[list[Batch]]:
    """The batches of the first steps of a run's first epoch."""
    source = resolve_encoder(config.init_checkpoint)
    encoder = load_encoder(source, hidden_dropout=0.0, attention_dropout=0.0, attention=config.attention)
    order = epoch_batches(
        len(data.train), config.batch_size, config.seed, 0, config.sampler, lengths=data.train.lengths
    )
    return [[encoder.batch(data.train, rows, pick_device(config.device))] for rows in order[:n]]


def measure(runs: dict[str, tuple[RunConfig, Datasets]], n_batches: int, turns: int) -> dict[str, Any]:
    """All figures of one task.

    Args:
        runs: method to its run; batches and products are those of the first one.
        n_batches: batches, of a step each.
        turns: turns that count on each batch, >= 1.
    """
    batches = first_batches(*next(iter(runs.values())), n_batches)
    built: dict[str, Step] = {name: build(config, data, batches)[0] for name, (config, data) in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in (*built, FLOOR)}
    profiles: dict[str, list[dict[str, float]]] = {name: [] for name in built}
    gflop = []
    for batch in batches:
        steps = {name: partial(step, batch) for name, step in built.items()}
        for step in steps.values():
            step()  # compiles, makes the optimizer's state
        products = record(next(iter(steps.values())))
        gflop.append(sum(product.flop for product in products) / 1e9)
        for name, values in take_turns({**steps, FLOOR: replay(products)}, turns).items():
            seconds[name] += values
        for name, step in steps.items():
            profiles[name].append(shares(step))
    alone = np.array(seconds[FLOOR])
    figures = {name: summarise(np.array(seconds[name]), alone, profiles[name]) for name in built}
    return {name: {**row, "gflop_per_step": float(np.mean(gflop))} for name, row in figures.items()}


def summarise(
    step: npt.NDArray[np.float64], alone: npt.NDArray[np.float64], profiles: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """Figures of a method.

    Args:
        step: (turns of all batches,) seconds of its steps.
        alone: (turns of all batches,) seconds of the products alone, in the same turns.
        profiles: shares of each kind, a profile per batch.
    """
    ratio = spread(step / alone)
    return {
        "step_over_floor": ratio["median"],
        "step_over_floor_quartiles": ratio["quartiles"],
        "step_ms": spread(1e3 * step),
        "floor_ms": spread(1e3 * alone),
        "profile": {kind: float(np.mean([one[kind] for one in profiles])) for kind in KINDS},
    }


def open_runs(
    task: str, options: argparse.Namespace, folder: Path, scratch: Path
) -> dict[str, tuple[RunConfig, Datasets]]:
    """The runs of a task, at their recipes' settings."""
    return {
        name: open_run(
            CONTENDERS[name], task, encoder=options.encoder, data_dir=folder, cache_dir=scratch / "cache",
            rows=1, precision=options.precision, device=options.device,
        )
        for name in METHODS
    }  # fmt: skip


def show(task: str, figures: dict[str, Any]) -> None:
    """Print one task, two lines per method."""
    for name, row in figures.items():
        low, high = row["step_over_floor_quartiles"]
        step, alone = row["step_ms"]["median"], row["floor_ms"]["median"]
        over = f"{row['step_over_floor']:.2f} ({low:.2f}-{high:.2f})"
        print(f"{task:5} {name:8} step {step:.0f} ms, products alone {alone:.0f} ms, step over floor {over}")
        profile = (f"{kind.replace('_', ' ')} {share:.1%}" for kind, share in row["profile"].items())
        print(f"      {', '.join(profile)}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser("floor", __doc__)
    parser.add_argument("--tasks", type=some_of(TASKS), default=list(TASKS), help=f"default: {','.join(TASKS)}")
    parser.add_argument("--batches", type=at_least_one, default=4, help="batches of a task; default: %(default)s")
    parser.add_argument("--turns", type=at_least_one, default=5, help="turns on a batch; default: %(default)s")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: %(default)s")
    add_place_arguments(parser)
    options = parser.parse_args(argv)
    if options.device != "cpu":
        parser.error(f"argument --device: {options.device}: only the CPU's products can be recorded; use cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        data, folder = find_data(options.data_dir, scratch, options.tasks)
        print(f"{data}, {options.encoder}, {options.precision}, {torch.get_num_threads()} threads")
        facts = {"machine": machine_facts(), "data": data, "encoder": options.encoder, "precision": options.precision}
        result: dict[str, Any] = {**facts, "tasks": {}}
        for task in options.tasks:
            result["tasks"][task] = measure(open_runs(task, options, folder, scratch), options.batches, options.turns)
            show(task, result["tasks"][task])
            write_json(options.out, result)


if __name__ == "__main__":
    sys.exit(status_of(main))
