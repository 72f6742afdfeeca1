"""Time a training step on a GPU with forward and backward recorded as CUDA graphs, and launched kernel by kernel.

    python -m benchmarks.cuda_pass --encoder bert-base-uncased --out pass.json

A step is everything from the batch to the updated weights, clipping included. Both kinds take turns on the same rows;
figures are medians over the turns, ratios medians of the ratios within a turn. Host: until the last kernel is launched.
Busy: the sum of the kernels' own times under torch's profiler. Data as in ``benchmarks.packing``. Without a GPU it says
so and exits with status 2.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from benchmarks.benchmark_figures import in_brackets, spread, write_json
from benchmarks.benchmark_parser import PRECISIONS, add_place_arguments, at_least_one, make_parser, some_of
from benchmarks.glue_rows import TASKS, find_data
from benchmarks.machine import machine_facts
from benchmarks.methods import Step, build
from benchmarks.peers.contender import CONTENDERS, open_run
from data_utils.command_line import status_of
from mt_dnn.assembly import pick_device
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets
from mt_dnn.encoder.batch import Batch
from mt_dnn.encoder.model import load_encoder
from mt_dnn.encoder.source import resolve_encoder

KINDS = {"launched": False, "recorded": True}
METHODS = ("vanilla", "noisytune", "sage", "pats")
Turn = Callable[[], None]


def make_turns(config: RunConfig, data: Datasets) -> dict[str, Turn]:
    """Of each kind: steps on all rows."""
    source, device = resolve_encoder(config.init_checkpoint), pick_device(config.device)
    encoder = load_encoder(source, hidden_dropout=0.0, attention_dropout=0.0, attention=config.attention)
    turns: dict[str, Turn] = {}
    for kind, recorded in KINDS.items():
        rows = np.arange(config.train_size or 0).reshape(-1, config.batch_size)
        batches = [[encoder.batch(data.train, part, device, filled=recorded)] for part in rows]
        turns[kind] = over(build(replace(config, cuda_graphs=recorded), data, batches)[0], batches)
    return turns


def over(step: Step, batches: list[list[Batch]]) -> Turn:
    """Steps on these batches, one after the other."""

    def turn() -> None:
        for window in batches:
            step(window)

    return turn


def alternate(turns: dict[str, Turn], steps: int, rounds: int) -> dict[str, dict[str, np.ndarray]]:
    """Milliseconds of a step, whole and on the host, (rounds,); three rounds before them compile and record."""
    whole: dict[str, list[float]] = {name: [] for name in turns}
    host: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 3):
        for name in list(turns)[:: -1 if number % 2 else 1]:
            torch.cuda.synchronize()
            started = time.perf_counter()
            turns[name]()
            host[name].append(1e3 * (time.perf_counter() - started) / steps)
            torch.cuda.synchronize()
            whole[name].append(1e3 * (time.perf_counter() - started) / steps)
    return {name: {"step": np.array(whole[name][3:]), "host": np.array(host[name][3:])} for name in turns}


def on_device(turn: Turn, steps: int) -> dict[str, float]:
    """Kernels of a step, copies included, and the sum of their times."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        turn()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == DeviceType.CUDA]
    busy = sum(event.time_range.elapsed_us() for event in events)
    return {"kernels": len(events) / steps, "busy_ms": 1e-3 * busy / steps}


def measure(config: RunConfig, data: Datasets, rounds: int) -> dict[str, Any]:
    """All figures of one method."""
    turns = make_turns(config, data)
    steps = (config.train_size or 0) // config.batch_size
    times = alternate(turns, steps, rounds)
    figures: dict[str, Any] = {
        name: {"step_ms": spread(times[name]["step"]), "host_ms": spread(times[name]["host"]), **on_device(turn, steps)}
        for name, turn in turns.items()
    }
    return {**figures, "times_as_fast": spread(times["launched"]["step"] / times["recorded"]["step"])}


def show(task: str, method: str, figures: dict[str, Any]) -> None:
    """Print one method, a line per kind."""
    for kind in KINDS:
        row = figures[kind]
        step, host = row["step_ms"], row["host_ms"]["median"]
        print(
            f"{task:5} {method:10} {kind:9} step {step['median']:6.2f} ms ({in_brackets(step, 2)}), "
            f"host {host:6.2f} ms, {row['kernels']:5.0f} kernels, busy {row['busy_ms']:5.2f} ms"
        )
    ratio = figures["times_as_fast"]
    print(f"{'':16} recorded is {ratio['median']:.2f} times as fast ({in_brackets(ratio, 2)})", flush=True)


def main() -> int:
    """Command line; returns its exit status."""
    parser = make_parser("cuda_pass", __doc__)
    parser.add_argument("--tasks", type=some_of(TASKS), default=["cola"], help="default: cola")
    parser.add_argument("--methods", type=some_of(METHODS), default=["vanilla", "pats"], help="default: vanilla,pats")
    parser.add_argument("--rows", type=at_least_one, default=512, help="rows of a turn, in 32s; default: %(default)s")
    parser.add_argument("--rounds", type=at_least_one, default=5, help="turns that count; default: %(default)s")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="default: %(default)s")
    add_place_arguments(parser)
    parser.set_defaults(device="cuda")
    options = parser.parse_args()
    if options.rows % 32:
        parser.error(f"argument --rows: {options.rows} is no multiple of 32, the recipes' batch size")
    if not torch.cuda.is_available():
        print("benchmarks.cuda_pass needs a CUDA device, and torch sees none here", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        result = run(options, Path(name))
    write_json(options.out, result)
    return 0


def run(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Measure and show every task and method."""
    data, folder = find_data(options.data_dir, scratch, options.tasks)
    print(f"{data}, {options.encoder}, {options.precision}, {torch.cuda.get_device_name()}")
    facts = {"machine": machine_facts(), "data": data, "encoder": options.encoder, "precision": options.precision}
    result: dict[str, Any] = {**facts, "tasks": {}}
    for task in options.tasks:
        for method in options.methods:
            config, rows = open_run(
                CONTENDERS[method], task, encoder=options.encoder, data_dir=folder, cache_dir=scratch / "cache",
                rows=options.rows, precision=options.precision, device=options.device,
            )  # fmt: skip
            figures = measure(config, rows, options.rounds)
            result["tasks"].setdefault(task, {})[method] = figures
            show(task, method, figures)
            torch.cuda.empty_cache()
    return result


if __name__ == "__main__":
    sys.exit(status_of(main))
