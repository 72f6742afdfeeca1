"""Peak memory of whole training by method, against transformers.Trainer with AdamW.

    python -m benchmarks.memory --out memory.json

Every contender trains one epoch over the same rows in batches of 32 and evaluates, alone in a fresh process. On the CPU
the figure is the largest resident memory of that process from its start: Python, torch and the encoder's file included,
as the operating system counts them. On CUDA it is the most that torch's allocator held. Ratios are of medians over the
repeats. Data as in ``benchmarks.packing``.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.benchmark_figures import write_json
from benchmarks.benchmark_parser import at_least_one, training_parser
from benchmarks.glue_rows import ROOT, find_data
from benchmarks.machine import machine_facts
from benchmarks.peak_memory import MIB
from benchmarks.peers.assignment import Train
from benchmarks.peers.contender import CONTENDERS, Contender, open_run
from data_utils.command_line import status_of

BASE = "trainer"
DEFAULT = ("vanilla", "noisytune", "sage", "pats", BASE)


def measure(builder: Callable[[], Train], threads: int | None, scratch: Path) -> dict[str, int]:
    """Build and train in a fresh process.

    Args:
        builder: from ``Contender.builder``.
        threads: of torch; None leaves it to torch.
        scratch: folder to write into.

    Returns:
        ``rss``, and ``cuda`` where a GPU was used: peaks in bytes.

    Raises:
        RuntimeError: the process failed; its message is shown.
    """
    file = scratch / "builder.pickle"
    file.write_bytes(pickle.dumps((threads, builder)))
    command = [sys.executable, "-m", "benchmarks.peak_memory", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a training in a process of its own failed:\n{done.stderr}")
    peaks: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def summarise(peaks: dict[str, list[dict[str, int]]]) -> dict[str, Any]:
    """Medians, smallest and largest of each contender in MiB, and the medians' ratio to transformers.Trainer's."""
    kind = "cuda" if all("cuda" in one for repeats in peaks.values() for one in repeats) else "rss"
    medians = {name: float(np.median([one[kind] for one in repeats])) for name, repeats in peaks.items()}
    summary: dict[str, Any] = {}
    for name, repeats in peaks.items():
        values = [one[kind] / MIB for one in repeats]
        summary[name] = {"kind": kind, "median_mib": medians[name] / MIB, "range_mib": [min(values), max(values)]}
        if BASE in medians:
            summary[name]["over_trainer"] = medians[name] / medians[BASE]
    return summary


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = training_parser("memory", __doc__, ",".join(DEFAULT))
    parser.add_argument("--rows", type=at_least_one, default=128, help="training rows; default: %(default)s")
    parser.add_argument(
        "--repeats", type=at_least_one, default=3, help="processes of each contender; default: %(default)s"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        result = benchmark(options, Path(name))
    write_json(options.out, result)


def benchmark(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Measure and print every task and precision."""
    description, folder = find_data(options.data_dir, scratch, options.tasks)
    facts = {"machine": machine_facts(), "data": description, "encoder": options.encoder, "rows": options.rows}
    result: dict[str, Any] = {**facts, "tasks": {}}
    print(f"{description}, {options.encoder}, {options.rows} rows, {options.device}; peak memory")
    for task in options.tasks:
        for precision in options.precisions:
            peaks: dict[str, list[dict[str, int]]] = {name: [] for name in options.contenders or DEFAULT}
            for repeat in range(options.repeats):
                for name, found in peaks.items():
                    found.append(measure_one(CONTENDERS[name], task, precision, repeat, options, folder, scratch))
            summary = summarise(peaks)
            result["tasks"].setdefault(task, {})[precision] = summary
            show(task, precision, summary)
    return result


def measure_one(
    contender: Contender,
    task: str,
    precision: str,
    repeat: int,
    options: argparse.Namespace,
    folder: Path,
    scratch: Path,
) -> dict[str, int]:
    """Peaks of one training; the repeat chooses its rows."""
    config, data = open_run(
        contender,
        task,
        encoder=options.encoder,
        data_dir=folder,
        cache_dir=scratch / "cache",
        rows=options.rows,
        precision=precision,
        device=options.device,
        seed=repeat,
    )
    own = scratch / f"{task}-{precision}-{contender.name}-{repeat}"
    own.mkdir()
    return measure(contender.builder(config, data, own), options.threads, scratch)


def show(task: str, precision: str, summary: dict[str, Any]) -> None:
    """Print one task and precision, a line per contender."""
    for name, row in summary.items():
        low, high = row["range_mib"]
        ratio = f"   {row['over_trainer']:.2f} of {BASE}" if "over_trainer" in row else ""
        print(f"{task:5} {precision} {name:10} {row['median_mib']:7.0f} MiB ({low:.0f}-{high:.0f}){ratio}", flush=True)


if __name__ == "__main__":
    sys.exit(status_of(main))
