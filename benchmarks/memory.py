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
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command_line import at_least_one, make_parser, write_json
from benchmarks.glue_rows import ROOT, find_data
from benchmarks.machine import machine_facts
from benchmarks.peers.contender import CONTENDERS, open_run

BASE = "trainer"
DEFAULT = ("vanilla", "noisytune", "sage", "pats", BASE)
MIB = 2**20


def peak_rss() -> int:
    """Largest resident memory of this process so far, bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        # Not ru_maxrss: on Linux it starts at the size that the parent had when it started this process.
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def measure_here(cell: dict[str, Any]) -> dict[str, int]:
    """Train one contender in this process.

    Args:
        cell: ``contender``, ``task``, ``threads``, and the keyword arguments of ``open_run``, paths as text.

    Returns:
        ``rss``, and ``cuda`` where a GPU was used: peaks in bytes.
    """
    import torch

    if cell["threads"]:
        torch.set_num_threads(cell["threads"])
    contender = CONTENDERS[cell["contender"]]
    config, data = open_run(
        contender,
        cell["task"],
        encoder=cell["encoder"],
        data_dir=Path(cell["data_dir"]),
        cache_dir=Path(cell["cache_dir"]),
        rows=cell["rows"],
        precision=cell["precision"],
        device=cell["device"],
        seed=cell["seed"],
    )
    with tempfile.TemporaryDirectory() as scratch:
        contender.prepare(config, data, Path(scratch))()
    peaks = {"rss": peak_rss()}
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        peaks["cuda"] = torch.cuda.max_memory_allocated()
    return peaks


def measure(cell: dict[str, Any]) -> dict[str, int]:
    """Train one contender in a fresh process; see ``measure_here``.

    Raises:
        RuntimeError: the process failed; its message is shown.
    """
    command = [sys.executable, "-m", "benchmarks.memory", "--cell", json.dumps(cell)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{cell['contender']} on {cell['task']} failed:\n{done.stderr}")
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
    parser = make_parser(__doc__, ",".join(DEFAULT))
    parser.add_argument("--rows", type=at_least_one, default=128, help="training rows; default: %(default)s")
    parser.add_argument(
        "--repeats", type=at_least_one, default=3, help="processes of each contender; default: %(default)s"
    )
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)  # one process's share, from `measure`
    options = parser.parse_args(argv)
    if options.cell:
        print(json.dumps(measure_here(options.cell)))
        return
    with tempfile.TemporaryDirectory() as name:
        result = benchmark(options, Path(name))
    write_json(options.out, result)


def benchmark(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Measure and print every task, precision and contender."""
    description, folder = find_data(options.data_dir, scratch, options.tasks)
    shared = {"encoder": options.encoder, "data_dir": str(folder.resolve()), "cache_dir": str(scratch / "cache")}
    shared |= {"rows": options.rows, "device": options.device, "threads": options.threads}
    facts = {"machine": machine_facts(), "data": description, "encoder": options.encoder, "rows": options.rows}
    result: dict[str, Any] = {**facts, "tasks": {}}
    print(f"{description}, {options.encoder}, {options.rows} rows, {options.device}; peak memory")
    for task in options.tasks:
        # The cache is made here: tokenising is in nobody's memory.
        cache = scratch / "cache"
        open_run(CONTENDERS["vanilla"], task, encoder=options.encoder, data_dir=folder, cache_dir=cache, rows=1)
        for precision in options.precisions:
            peaks: dict[str, list[dict[str, int]]] = {name: [] for name in options.contenders or DEFAULT}
            for repeat in range(options.repeats):
                for name, found in peaks.items():
                    cell = {"contender": name, "task": task, "precision": precision, "seed": repeat, **shared}
                    found.append(measure(cell))
            summary = summarise(peaks)
            result["tasks"].setdefault(task, {})[precision] = summary
            show(task, precision, summary)
    return result


def show(task: str, precision: str, summary: dict[str, Any]) -> None:
    """Print one task and precision, a line per contender."""
    for name, row in summary.items():
        low, high = row["range_mib"]
        ratio = f"   {row['over_trainer']:.2f} of {BASE}" if "over_trainer" in row else ""
        print(f"{task:5} {precision} {name:10} {row['median_mib']:7.0f} MiB ({low:.0f}-{high:.0f}){ratio}", flush=True)


if __name__ == "__main__":
    main()
