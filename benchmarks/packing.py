"""Examples per second of packed against padded training, forward and backward, in one process.

    python -m benchmarks.packing --out packing.json

The demo's encoder (22.7 M parameters), batches of 32, dynamic padding for the padded side, no optimizer. Both sides
take turns on the same batches, so that a busy machine slows both; ratios are medians of the ratios within a turn.
CoLA, RTE and MRPC come from ``--data_dir``, canonical files as ``glue_prepro.py`` writes them; where it is not given,
rows of the same lengths' distribution are generated, and the output says so.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.machine import machine_facts
from data_utils.canonical_tsv import write_canonical
from data_utils.task_def import TaskDef, load_task_defs
from data_utils.token_cache import TokenCache, ensure_cache
from data_utils.tokenizer import load_tokenizer
from mt_dnn.batch import collate
from mt_dnn.config import GLUE_TASK_DEF
from mt_dnn.encoder import load_encoder, resolve_encoder
from mt_dnn.loss import task_loss
from mt_dnn.network import Network
from mt_dnn.precision import resolve_precision

TASKS = ("cola", "rte", "mrpc")
CPU = torch.device("cpu")
# Mean and standard deviation of ln(tokens) in the real training sets, special tokens included, for generated rows.
LOG_LENGTHS = {"cola": (2.34, 0.36), "rte": (4.07, 0.52), "mrpc": (3.94, 0.24)}


def open_task(name: str, data_dir: Path | None, scratch: Path, max_seq_len: int) -> tuple[TaskDef, TokenCache]:
    """Cache of a task's training set, real or generated."""
    task_def = load_task_defs(GLUE_TASK_DEF)[name]
    if data_dir is not None:
        tsv = data_dir / f"{name}_train.tsv"
    else:
        tsv = scratch / f"{name}_train.tsv"
        rng = np.random.default_rng(0)
        lengths = np.maximum(5, np.exp(rng.normal(*LOG_LENGTHS[name], size=2000))).astype(int) - 3
        texts = [" ".join(["movie"] * n) for n in lengths]
        labels = [task_def.labels[0] if task_def.labels else "0"] * len(texts)
        pair = ["movie"] * len(texts) if name != "cola" else None
        write_canonical(tsv, [str(i) for i in range(len(texts))], labels, texts, pair)
    tokenizer = load_tokenizer(resolve_encoder("all-MiniLM-L6-v2").folder)
    return task_def, ensure_cache(tsv, task_def, tokenizer, scratch / "cache" / name, max_seq_len)


def make_networks(task_def: TaskDef) -> dict[str, Network]:
    """The same network twice, once for each layout."""
    source = resolve_encoder("all-MiniLM-L6-v2")
    networks = {}
    for layout in ("packed", "padded"):
        encoder = load_encoder(source, hidden_dropout=0.1, attention_dropout=0.1, attention=layout)
        networks[layout] = Network(encoder, task_def, 0.1, "tanh", torch.Generator().manual_seed(0))
    return networks


def largest_difference(networks: dict[str, Network], cache: TokenCache, batches: list[npt.NDArray[np.int64]]) -> float:
    """Largest difference of a logit between the layouts, fp32, no dropout."""
    worst = 0.0
    with torch.inference_mode():
        for network in networks.values():
            network.eval()
        for rows in batches:
            logits = [network(network.encoder.batch(cache, rows, CPU)) for network in networks.values()]
            worst = max(worst, float((logits[0] - logits[1]).abs().max()))
    return worst


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
    for batches in turns:
        for layout, network in networks.items():
            network.train()
            started = time.perf_counter()
            for rows in batches:
                batch = collate(cache, rows, packed=layout == "packed", pad_id=network.encoder.pad_id, device=CPU)
                with resolved.autocast():
                    logits = network(batch)
                task_loss(task_def, logits, batch.labels).backward()  # type: ignore[no-untyped-call]
                network.zero_grad(set_to_none=True)
            seconds[layout].append(time.perf_counter() - started)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def benchmark(
    task: str, data_dir: Path | None, scratch: Path, turns: int, batches: int, max_seq_len: int
) -> dict[str, Any]:
    """All figures of one task."""
    task_def, cache = open_task(task, data_dir, scratch, max_seq_len)
    networks = make_networks(task_def)
    order = np.random.default_rng(1).permutation(len(cache))
    needed = order[: 32 * batches * (turns + 1)]
    groups = [needed[i : i + 32] for i in range(0, len(needed) - 31, 32)]
    per_turn = [groups[i : i + batches] for i in range(0, len(groups) - batches + 1, batches)]
    lengths = cache.lengths
    padded = np.mean([len(g) * lengths[g].max() / lengths[g].sum() for g in groups])
    figures: dict[str, Any] = {
        "examples": len(cache),
        "padded_over_real_tokens": float(padded),
        "largest_logit_difference_fp32": largest_difference(networks, cache, groups[:8]),
    }
    for precision in ("fp32", "bf16"):
        seconds = measure(task_def, cache, networks, per_turn, precision)
        ratios = seconds["padded"] / seconds["packed"]
        low, middle, high = np.percentile(ratios, (25, 50, 75))
        figures[precision] = {
            "packed_examples_per_second": float(32 * batches / np.median(seconds["packed"])),
            "padded_examples_per_second": float(32 * batches / np.median(seconds["padded"])),
            "ratio": {"median": float(middle), "quartiles": [float(low), float(high)], "turns": len(ratios)},
        }
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="folder with canonical <task>_train.tsv; default: generated rows")
    parser.add_argument("--turns", type=int, default=7, help="turns of each layout; default: %(default)s")
    parser.add_argument("--batches", type=int, default=4, help="batches of 32 a turn; default: %(default)s")
    parser.add_argument("--max_seq_len", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="JSON file for figures and machine facts")
    options = parser.parse_args()
    data = "real" if options.data_dir else "generated"
    result: dict[str, Any] = {"machine": machine_facts(), "data": data, "batch_size": 32, "tasks": {}}
    print(f"{data} rows, batch 32, {result['machine']['torch_threads']} threads; examples per second")
    with tempfile.TemporaryDirectory() as scratch:
        for task in TASKS:
            figures = benchmark(
                task, options.data_dir, Path(scratch), options.turns, options.batches, options.max_seq_len
            )
            result["tasks"][task] = figures
            for precision in ("fp32", "bf16"):
                f = figures[precision]
                low, high = f["ratio"]["quartiles"]
                print(
                    f"{task:5} {precision}: packed {f['packed_examples_per_second']:6.1f}, padded "
                    f"{f['padded_examples_per_second']:6.1f}, ratio {f['ratio']['median']:.2f} ({low:.2f}-{high:.2f})"
                )
            print(
                f"{task:5} padded/real tokens {figures['padded_over_real_tokens']:.2f}, largest logit difference "
                f"{figures['largest_logit_difference_fp32']:.1e} in fp32"
            )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
