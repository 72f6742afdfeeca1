"""Time the host's work in one optimizer step, its kernels left out, on BERT-base and RoBERTa-large.

    python -m benchmarks.optimizer_host --out optimizer_host.json

Timed are checks, tables, settings and counts, which cost the same whatever the size of a tensor: there are as many
tensors as the model has, small ones, and the loops over entries are left out. In steps called "anew" nothing is known
from the step before, as where a parameter or a state has been replaced. They take turns, one step each per round;
figures are medians over the rounds, ratios medians of the ratios within a round.
"""

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.benchmark_figures import write_json
from benchmarks.benchmark_parser import make_parser
from benchmarks.cuda_step import MODELS
from benchmarks.machine import machine_facts
from benchmarks.optimizer_step import make_parameters, measure
from data_utils.command_line import status_of
from module.bert_optim import Adamax, PATSAdamax, SAGEAdamax

SIDE = 8  # entries along a dimension of a small tensor
OPTIMIZERS: tuple[type[Adamax], ...] = (Adamax, PATSAdamax, SAGEAdamax)


def contenders(shapes: dict[str, tuple[int, ...]]) -> dict[str, Callable[[], Any]]:
    """The steps to be timed, in two groups as usual: with decay and without."""
    small = {name: tuple(min(n, SIDE) for n in shape) for name, shape in shapes.items()}
    steps: dict[str, Callable[[], Any]] = {}
    for kind in OPTIMIZERS:
        for anew in (False, True):
            named = make_parameters(small)
            matrices, rest = ([pair for pair in named if (pair[1].ndim > 1) is wanted] for wanted in (True, False))
            optimizer = kind([{"params": matrices}, {"params": rest, "weight_decay": 0.0}], 1e-4)

            def step(optimizer: Adamax = optimizer, anew: bool = anew) -> None:
                if anew:
                    optimizer._engine.forget()
                optimizer.step()

            steps[kind.__name__ + ", anew" * anew] = step
    return steps


def summarise(seconds: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Median and quartiles in milliseconds, and the ratio to the step of the same optimizer that is not anew."""
    summary = {}
    for name, values in seconds.items():
        low, median, high = (1e3 * float(v) for v in np.percentile(values, [25, 50, 75]))
        over = float(np.median(values / seconds[name.removesuffix(", anew")]))
        summary[name] = {"median_ms": median, "low_ms": low, "high_ms": high, "over_kept": over}
    return summary


def main() -> None:
    """Command line."""
    parser = make_parser("optimizer_host", __doc__)
    parser.add_argument("--rounds", type=int, default=50, help="rounds that count (default 50)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    home, results = "module.kernels.host_step", {}
    for model, shapes_of in MODELS.items():
        shapes = shapes_of()
        print(f"\n{model}, {len(shapes)} tensors")
        with (
            mock.patch(f"{home}.update_rows"),
            mock.patch(f"{home}.sum_rows", lambda rows, squares=None: rows["size"] * 0.0),
        ):
            results[model] = summarise(measure(contenders(shapes), arguments.rounds))
        for name, row in results[model].items():
            spread = f"{row['low_ms']:.3f}-{row['high_ms']:.3f}"
            print(f"{name:18s} {row['median_ms']:7.3f} ms {spread:>14s} ms {row['over_kept']:6.1f}x")
    write_json(arguments.out, {"rounds": arguments.rounds, "results": results, "machine": machine_facts()})


if __name__ == "__main__":
    sys.exit(status_of(main))
