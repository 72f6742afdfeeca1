"""Time what the host does in one optimizer step, its kernels left out, on BERT-base and RoBERTa-large.

    python -m benchmarks.host_step --out host_step.json

Timed are checks, tables, settings and counts, which cost the same whatever the size of a tensor: there are as many
tensors as the model has, small ones, and the loops over entries are left out. As in training, gradients are new at each
step and the learning rate changes. ``kept``: the tables of the step before are used again; ``anew``: they are made for
each step, as where a parameter or a state has been replaced. The two take turns; figures are medians over the rounds,
ratios medians of the ratios within a round.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from benchmarks.command_line import thread_count
from benchmarks.cuda_step import MODELS, Shapes
from benchmarks.machine import machine_facts
from module.bert_optim import Adamax, PATSAdamax, SAGEAdamax
from module.kernel_optimizer import KernelOptimizer

OPTIMIZERS: dict[str, type[KernelOptimizer]] = {
    "Adamax": Adamax,
    "PATSAdamax": PATSAdamax,
    "SAGEAdamax": SAGEAdamax,
}
SIDE = 8  # entries along a dimension of a small tensor


@contextmanager
def without_kernels() -> Iterator[None]:
    """Leave out the loops over entries."""
    home = "module.kernels.host_step"
    with (
        mock.patch(f"{home}.update_rows"),
        mock.patch(f"{home}.sum_rows", lambda rows: np.zeros(len(rows))),
    ):
        yield


def make_optimizer(kind: type[KernelOptimizer], shapes: Shapes) -> KernelOptimizer:
    """An optimizer of small tensors of these names, in two groups as usual: with and without decay."""
    named = [(name, nn.Parameter(torch.zeros([min(n, SIDE) for n in shape]))) for name, shape in shapes.items()]
    decayed = [pair for pair in named if pair[1].ndim > 1]
    rest = [pair for pair in named if pair[1].ndim <= 1]
    return kind([{"params": decayed}, {"params": rest, "weight_decay": 0.0}], 1e-4)


def prepare(optimizer: KernelOptimizer, round_: int) -> None:
    """New gradients and a new learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = 1e-4 / (1 + round_)
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)


def forget(optimizer: KernelOptimizer) -> None:
    """Let the next step make its tables anew: one entry of a state is another tensor."""
    state = next(iter(optimizer.state.values()))
    state["step"] = state["step"].clone()


def measure(shapes: Shapes, rounds: int, warmup: int = 3) -> dict[str, dict[str, np.ndarray]]:
    """Seconds of each optimizer's step, kept and anew, in each round, (rounds,)."""
    seconds: dict[str, dict[str, list[float]]] = {name: {"kept": [], "anew": []} for name in OPTIMIZERS}
    before: dict[str, Callable[[KernelOptimizer], None]] = {"kept": lambda optimizer: None, "anew": forget}
    for name, kind in OPTIMIZERS.items():
        optimizer = make_optimizer(kind, shapes)
        for round_ in range(warmup + rounds):
            for way, times in seconds[name].items():
                prepare(optimizer, round_)
                if round_:
                    before[way](optimizer)
                start = time.perf_counter()
                optimizer.step()
                elapsed = time.perf_counter() - start
                if round_ >= warmup:
                    times.append(elapsed)
                if way == "anew":
                    optimizer.step()  # keeps the tables that "kept" uses
    return {name: {way: np.array(times) for way, times in ways.items()} for name, ways in seconds.items()}


def summarise(seconds: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """Medians in milliseconds, quartiles of the kept way, and how much longer the other takes."""
    summary: dict[str, dict[str, Any]] = {}
    for name, ways in seconds.items():
        low, median, high = (1e3 * float(v) for v in np.percentile(ways["kept"], [25, 50, 75]))
        summary[name] = {
            "kept_ms": median,
            "quartiles_ms": [low, high],
            "anew_ms": 1e3 * float(np.median(ways["anew"])),
            "anew_over_kept": float(np.median(ways["anew"] / ways["kept"])),
        }
    return summary


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Time the host's part of one optimizer step.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: both")
    parser.add_argument("--rounds", type=int, default=50, help="rounds that count (default 50)")
    parser.add_argument("--threads", type=thread_count, help="threads of torch (default: torch's)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures and the machine")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    results = {}
    for model in arguments.models:
        shapes = MODELS[model]()
        with without_kernels():
            results[model] = summarise(measure(shapes, arguments.rounds))
        print(f"\n{model}, {len(shapes)} tensors")
        print(f"{'':12s} {'kept':>9s} {'quartiles':>18s} {'anew':>9s} {'anew / kept':>12s}")
        for name, row in results[model].items():
            low, high = row["quartiles_ms"]
            times = f"{row['kept_ms']:6.3f} ms {f'{low:.3f}-{high:.3f}':>15s} ms {row['anew_ms']:6.3f} ms"
            print(f"{name:12s} {times} {row['anew_over_kept']:11.1f}x")
    if arguments.out:
        result = {"rounds": arguments.rounds, "results": results, "machine": machine_facts()}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
