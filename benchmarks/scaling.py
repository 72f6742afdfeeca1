"""Time and memory of a training epoch against the size of the training set, 1,000 to 400,000 examples.

    python -m benchmarks.scaling --out scaling.json

Rows are generated (single sentences, 35 tokens on average); the encoder is a tiny random BERT, so that what grows with
the data shows beside what a step costs anyway. Each size is a fresh process that trains with ``mt_dnn.run.run``, batch
32; timed are the steps after the first, so start-up is not in it, over several epochs for small sets. Batch assembly
(the order of an epoch, and every batch of it from the memory map to tensors) is timed apart. Time against tokens is
fitted by a straight line (R^2) and by a power (the exponent is the slope in logarithms: 1 is linear growth).

Memory is the largest seen after a step: ``own`` is what the process holds for itself, ``mapped`` are pages of files,
the cache's among them, which the system shares between processes and takes back when it needs them. oneDNN keeps a
compiled kernel for each of the last 1,024 matrix shapes, tens of MiB that grow with the steps and not with the data;
here it keeps 16, so that growth with the data would show.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.benchmark_figures import write_json
from benchmarks.benchmark_parser import make_parser
from benchmarks.glue_rows import ROOT
from benchmarks.machine import machine_facts
from benchmarks.random_encoder import make_encoder, write_rows
from data_utils.batching import epoch_batches
from data_utils.command_line import status_of
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from mt_dnn.config import RunConfig
from mt_dnn.data import open_datasets
from mt_dnn.encoder.batch import pack
from mt_dnn.progress import Progress
from mt_dnn.run import run

SIZES = (1_000, 4_000, 20_000, 100_000, 400_000)
BATCH = 32
LEAST_STEPS = 1_000  # timed steps of a small training set: as many epochs as that takes
DEV_ROWS = 8
SAMPLE = 50  # steps between two looks at the memory
CHILD = "import sys; from benchmarks.scaling import child; child(sys.argv[1])"


def memory() -> dict[str, float]:
    """MiB of this process: its own, and pages of files."""
    status = Path("/proc/self/status").read_text()
    own, mapped = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 2**10 for name in ("RssAnon", "RssFile"))  # type: ignore[index]
    return {"own_mib": own, "mapped_mib": mapped}


def make_config(folder: Path, epochs: int) -> RunConfig:
    """The run of one size."""
    return RunConfig(
        init_checkpoint=str(folder.parent / "encoder"), task_def=GLUE_TASK_DEF, data_dir=folder,
        output_dir=folder / "runs", epochs=epochs, batch_size=BATCH, save="none", tensorboard=False,
        checkpoint_seconds=1e9, precision="fp32",
    )  # fmt: skip


def child(folder_name: str) -> None:
    """Train and time one size in this process; prints the figures as JSON."""
    folder = Path(folder_name)
    rows = sum(1 for _ in (folder / "cola_train.tsv").open("rb"))
    steps = -(-rows // BATCH)
    epochs = max(1, -(-LEAST_STEPS // steps))
    config = make_config(folder, epochs)
    data = open_datasets(config)
    assembly = time_assembly(data.train)
    moments: list[float] = []
    most: dict[str, float] = {}

    def on_progress(progress: Progress) -> None:
        moments.append(time.perf_counter())
        if progress.step % SAMPLE == 0 or progress.step in (1, progress.total_steps):
            for name, value in memory().items():
                most[name] = max(most.get(name, 0.0), value)

    run(config, on_progress)
    per_step = (moments[-1] - moments[0]) / (len(moments) - 1)
    figures = {
        "rows": rows,
        "tokens": len(data.train.tokens),
        "epochs_timed": epochs,
        "epoch_seconds": per_step * steps,
        "assembly_seconds": assembly,
        **most,
    }
    print(json.dumps(figures))


def time_assembly(cache: Any) -> float:
    """Seconds to order an epoch and to make every batch of it; the median of a few passes over a small set."""
    passes = max(1, 20_000 // len(cache))
    seconds = []
    for epoch in range(passes):
        started = time.perf_counter()
        for indices in epoch_batches(len(cache), BATCH, 1, epoch, lengths=cache.lengths):
            pack(cache, indices)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def fit(tokens: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Straight line and power law of time against tokens."""
    x, y = np.array(tokens, dtype=np.float64), np.array(seconds)
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - (slope * x + intercept)
    exponent, _ = np.polyfit(np.log(x), np.log(y), 1)
    return {
        "microseconds_per_token": 1e6 * float(slope),
        "intercept_seconds": float(intercept),
        "r_squared": 1 - float((residual**2).sum() / ((y - y.mean()) ** 2).sum()),
        "exponent": float(exponent),
    }


def measure(rows: int, scratch: Path) -> dict[str, Any]:
    """Figures of one size, from a process of its own."""
    folder = scratch / str(rows)
    folder.mkdir()
    write_rows(folder / "cola_train.tsv", rows)
    write_rows(folder / "cola_dev.tsv", DEV_ROWS)
    command = [sys.executable, "-c", CHILD, str(folder)]
    environment = {**os.environ, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = make_parser("scaling", __doc__)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="training examples; default: %(default)s")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"machine": machine_facts(), "batch_size": BATCH, "encoder": "tiny BERT", "sizes": []}
    with tempfile.TemporaryDirectory() as name:
        make_encoder(Path(name) / "encoder", "tiny")
        for rows in map(int, options.sizes.split(",")):
            figures = measure(rows, Path(name))
            result["sizes"].append(figures)
            print(
                f"{figures['rows']:7,} rows, {figures['tokens']:10,} tokens: epoch {figures['epoch_seconds']:7.2f} s, "
                f"batches {figures['assembly_seconds']:6.2f} s, memory {figures['own_mib']:4.0f} MiB own, "
                f"{figures['mapped_mib']:3.0f} MiB mapped",
                flush=True,
            )
    tokens = [figures["tokens"] for figures in result["sizes"]]
    result["fit"] = {}
    for what in ("epoch", "assembly"):
        result["fit"][what] = fitted = fit(tokens, [figures[f"{what}_seconds"] for figures in result["sizes"]])
        print(
            f"{what}: {fitted['microseconds_per_token']:.2f} us per token, R^2 {fitted['r_squared']:.4f}, "
            f"exponent {fitted['exponent']:.3f}"
        )
    write_json(options.out, result)


if __name__ == "__main__":
    sys.exit(status_of(main))
