"""Examples per second of packed against padded training, forward and backward, in one process.

    python -m benchmarks.packing --out packing.json

The demo's encoder (22.7 M parameters), batches of 32, dynamic padding for the padded side, no optimizer. Both sides
take turns on the same batches, so that a busy machine slows both; ratios are medians of the ratios within a turn.
The training sets of CoLA, RTE, MRPC and STS-B come from ``--data_dir``, canonical files as ``glue_prepro.py`` writes
them, or are made from GLUE's files in the folder PATS_GLUE_DIR; without either, rows of similar lengths are generated.
The output says which.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.benchmark_figures import in_brackets, spread, write_json
from benchmarks.benchmark_parser import make_parser, thread_count
from benchmarks.glue_rows import find_data
from benchmarks.machine import machine_facts
from data_utils.command_line import status_of
from data_utils.task_def import TaskDef, load_task_defs
from data_utils.token_cache import TokenCache, ensure_cache
from data_utils.tokenizer import load_tokenizer
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from mt_dnn.encoder.model import load_encoder
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.loss import task_loss
from mt_dnn.network import Network
from mt_dnn.precision import resolve_precision

# Batches of a turn: about equal times.
TASKS = {"cola": 8, "rte": 1, "mrpc": 2, "stsb": 4}
BATCH = 32
CPU = torch.device("cpu")
ENCODER = "all-MiniLM-L6-v2"


def open_task(name: str, folder: Path, scratch: Path, max_seq_len: int) -> tuple[TaskDef, TokenCache]:
    """A task and the cache of its training set."""
    task_def = load_task_defs(GLUE_TASK_DEF)[name]
    tokenizer = load_tokenizer(resolve_encoder(ENCODER).folder)
    tsv = folder / f"{name}_train.tsv"
    return task_def, ensure_cache(tsv, task_def, tokenizer, scratch / "cache" / name, max_seq_len)


def make_networks(task_def: TaskDef) -> dict[str, Network]:
    """Two equal networks, one for each layout."""
    source = resolve_encoder(ENCODER)
    networks = {}
    for layout in ("packed", "padded"):
        encoder = load_encoder(source, hidden_dropout=0.1, attention_dropout=0.1, attention=layout)
        networks[layout] = Network(encoder, [task_def], [0.1], "tanh", torch.Generator().manual_seed(0))
    return networks


def largest_difference(
    networks: dict[str, Network], cache: TokenCache, batches: list[npt.NDArray[np.int64]]
) -> tuple[float, float]:
    """Largest difference of a logit between the layouts, fp32, no dropout; and the largest logit, to compare with."""
    worst = largest = 0.0
    with torch.inference_mode():
        for network in networks.values():
            network.eval()
        for rows in batches:
            packed, padded = (network(network.encoder.batch(cache, rows, CPU)) for network in networks.values())
            worst = max(worst, float((packed - padded).abs().max()))
            largest = max(largest, float(padded.abs().max()))
    return worst, largest


def measure(
    task_def: TaskDef,
    cache: TokenCache,
    networks: dict[str, Network],
    turns: list[list[npt.NDArray[np.int64]]],
    precision: str,
) -> dict[str, npt.NDArray[np.float64]]:
    """Seconds of each layout for each turn, batch assembly included; the first turn warms up and is dropped."""
    resolved = resolve_precision(precision, CPU)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for turn, batches in enumerate(turns):
        layouts = list(networks.items())
        for layout, network in layouts if turn % 2 else layouts[::-1]:
            network.train()
            started = time.perf_counter()
            for rows in batches:
                batch = network.encoder.batch(cache, rows, CPU)
                with resolved.autocast():
                    logits = network(batch)
                task_loss(task_def, logits, batch.labels).backward()  # type: ignore[no-untyped-call]
                network.zero_grad(set_to_none=True)
            seconds[layout].append(time.perf_counter() - started)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def benchmark(task: str, folder: Path, scratch: Path, turns: int, max_seq_len: int) -> dict[str, Any]:
    """All figures of one task."""
    task_def, cache = open_task(task, folder, scratch, max_seq_len)
    networks = make_networks(task_def)
    batches = TASKS[task]
    order = np.random.default_rng(1).permutation(len(cache))
    groups = [order[i : i + BATCH] for i in range(0, min(len(order) + 1 - BATCH, BATCH * batches * (turns + 1)), BATCH)]
    per_turn = [groups[i : i + batches] for i in range(0, len(groups) - batches + 1, batches)]
    lengths = cache.lengths
    padded = np.mean([len(g) * lengths[g].max() / lengths[g].sum() for g in groups])
    difference, largest = largest_difference(networks, cache, groups[:4])
    figures: dict[str, Any] = {
        "examples": len(cache),
        "padded_over_real_tokens": float(padded),
        "largest_logit_difference_fp32": difference,
        "largest_logit_fp32": largest,
    }
    for precision in ("fp32", "bf16"):
        seconds = measure(task_def, cache, networks, per_turn, precision)
        figures[precision] = {
            "packed_examples_per_second": float(BATCH * batches / np.median(seconds["packed"])),
            "padded_examples_per_second": float(BATCH * batches / np.median(seconds["padded"])),
            "ratio": spread(seconds["padded"] / seconds["packed"]),
        }
    return figures


def main() -> None:
    """Command line."""
    parser = make_parser("packing", __doc__)
    parser.add_argument("--data_dir", type=Path, help="folder with canonical <task>_train.tsv; default: see below")
    parser.add_argument("--turns", type=int, default=9, help="turns of each layout; default: %(default)s")
    parser.add_argument("--max_seq_len", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--threads", type=thread_count, help="threads of torch; default: torch's choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        data, folder = find_data(options.data_dir, scratch, tuple(TASKS))
        result: dict[str, Any] = {"machine": machine_facts(), "data": data, "batch_size": BATCH, "tasks": {}}
        print(f"{data}, batch {BATCH}, {result['machine']['torch_threads']} threads; examples per second")
        for task in TASKS:
            figures = benchmark(task, folder, scratch, options.turns, options.max_seq_len)
            result["tasks"][task] = figures
            for precision in ("fp32", "bf16"):
                f, ratio = figures[precision], figures[precision]["ratio"]
                print(
                    f"{task:5} {precision}: packed {f['packed_examples_per_second']:6.1f}, padded "
                    f"{f['padded_examples_per_second']:6.1f}, ratio {ratio['median']:.2f} ({in_brackets(ratio, 2)})"
                )
            print(
                f"{task:5} padded/real tokens {figures['padded_over_real_tokens']:.2f}, largest logit difference "
                f"{figures['largest_logit_difference_fp32']:.1e} of {figures['largest_logit_fp32']:.2f} in fp32"
            )
    write_json(options.out, result)


if __name__ == "__main__":
    sys.exit(status_of(main))
