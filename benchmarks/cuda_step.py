"""Time one optimizer step on a GPU, on the parameter shapes of BERT-base and RoBERTa-large.

    python -m benchmarks.cuda_step --out step.json

Compared: this project's Adamax, PATSAdamax and SAGEAdamax with ``torch.optim.Adamax(foreach=True)`` and
``torch.optim.AdamW(fused=True)``. They take turns, one step each per round, timed by CUDA events; figures are medians
over the rounds, ratios medians of the ratios within a round. Bandwidth is the bytes that a step must move over its
median time, beside that of a copy measured in the same rounds. Values are random; nothing is downloaded. Without a GPU
it says so and exits with status 2.
"""

import gc
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from benchmarks.benchmark_figures import write_json
from benchmarks.benchmark_parser import make_parser
from benchmarks.machine import machine_facts
from benchmarks.optimizer_step import make_parameters
from data_utils.command_line import status_of
from module.bert_optim import Adamax, PATSAdamax, SAGEAdamax
from module.param_index import Kind, ParamIndex

Shapes = dict[str, tuple[int, ...]]
Steps = dict[str, Callable[[], Any]]

COPY = "copy"
BASELINES = ("torch.optim.Adamax", "torch.optim.AdamW")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COPY_ENTRIES = 1 << 28  # 1 GiB of float32, far above any cache


def bert_base_shapes() -> Shapes:
    """Names and shapes of BERT-base, uncased, with its pooler."""
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        return {f"bert.{name}": tuple(p.shape) for name, p in BertModel(BertConfig()).named_parameters()}


def roberta_large_shapes() -> Shapes:
    """Names and shapes of RoBERTa-large."""
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=50265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    with torch.device("meta"):
        return {f"roberta.{name}": tuple(p.shape) for name, p in RobertaModel(config).named_parameters()}


MODELS = {"BERT-base": bert_base_shapes, "RoBERTa-large": roberta_large_shapes}


def step_bytes(shapes: Shapes, element: int) -> dict[str, int]:
    """Bytes that each optimizer's step must move at least.

    Plain Adamax reads theta, g, m, u and writes theta, m, u. With a sensitivity, selected tensors are read once more
    for the mean (theta and g) and have one more float32 buffer, read and written.

    Args:
        shapes: The parameters' names and shapes.
        element: Bytes of an entry of theta and of g: 4 or 2. The state is float32.
    """
    index = ParamIndex([(name, nn.Parameter(torch.empty(shape, device="meta"))) for name, shape in shapes.items()])
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    selected = sum(p.parameter.numel() for p in index if p.in_layer and p.kind in (Kind.WEIGHT, Kind.BIAS))
    plain, torch_state = total * (3 * element + 16), total * 7 * element  # torch keeps its state in theta's dtype
    tracked = plain + selected * (2 * element + 8)
    return {
        "Adamax": plain,
        "PATSAdamax": tracked,
        "SAGEAdamax": tracked,
        "torch.optim.Adamax": torch_state,
        "torch.optim.AdamW": torch_state,
    }


def contenders(shapes: Shapes, dtype: torch.dtype, device: torch.device) -> Steps:
    """The steps to be timed; they share parameters and gradients, which costs nobody anything."""
    named, lr = make_parameters(shapes, dtype, device), 1e-6
    parameters = [p for _, p in named]
    return {
        "Adamax": Adamax(named, lr).step,
        "PATSAdamax": PATSAdamax(named, lr).step,
        "SAGEAdamax": SAGEAdamax(named, lr).step,
        "torch.optim.Adamax": torch.optim.Adamax(parameters, lr, foreach=True).step,
        "torch.optim.AdamW": torch.optim.AdamW(parameters, lr, fused=True).step,
    }


def copier(device: torch.device) -> Callable[[], Any]:
    """One copy between two buffers of COPY_ENTRIES float32."""
    source, target = (torch.zeros(COPY_ENTRIES, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def measure(steps: Steps, rounds: int, warmup: int = 3) -> dict[str, np.ndarray]:
    """Seconds between the events around each step, (rounds,) per name.

    A step that the host hands out more slowly than the device works counts as long as the host takes.
    """
    pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in steps}
    for round_ in range(warmup + rounds):
        for name, step in steps.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            start.record()
            step()
            end.record()
            if round_ >= warmup:
                pairs[name].append((start, end))
    torch.cuda.synchronize()
    return {name: np.array([1e-3 * a.elapsed_time(b) for a, b in events]) for name, events in pairs.items()}


def count_launches(step: Callable[[], Any]) -> int:
    """Kernels that one step launches, copies of tables not counted."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    return sum(
        event.device_type == DeviceType.CUDA and not event.name.startswith(("Mem", "mem")) for event in profile.events()
    )


def summarise(seconds: dict[str, np.ndarray], moved: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Times in milliseconds, ratios to the baselines, and bandwidth over that of the copy.

    Args:
        seconds: Per step (rounds,), with those of the copy.
        moved: Bytes per step, those of the copy too.
    """
    copied = moved[COPY] / float(np.median(seconds[COPY]))
    summary: dict[str, dict[str, Any]] = {}
    for name, values in seconds.items():
        low, median, high = (float(v) for v in np.percentile(values, [25, 50, 75]))
        summary[name] = {
            "median_ms": 1e3 * median,
            "quartiles_ms": [1e3 * low, 1e3 * high],
            "over": {base: float(np.median(values / seconds[base])) for base in BASELINES},
            "bytes": moved[name],
            "gb_per_s": 1e-9 * moved[name] / median,
            "of_copy_bandwidth": moved[name] / median / copied,
        }
    return summary


def run(model: str, dtype: str, rounds: int) -> dict[str, Any]:
    """Measure one model in one dtype."""
    device, shapes = torch.device("cuda", torch.cuda.current_device()), MODELS[model]()
    steps = contenders(shapes, DTYPES[dtype], device)
    seconds = measure({**steps, COPY: copier(device)}, rounds)
    moved = {**step_bytes(shapes, DTYPES[dtype].itemsize), COPY: 8 * COPY_ENTRIES}
    summary = summarise(seconds, moved)
    for name, step in steps.items():
        summary[name]["kernel_launches"] = count_launches(step)
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    return {"model": model, "dtype": dtype, "parameters": count, "tensors": len(shapes), "steps": summary}


def show(result: dict[str, Any]) -> None:
    """Print one result as a table."""
    print(f"\n{result['model']}, {result['dtype']}: {result['parameters'] / 1e6:.0f} M in {result['tensors']} tensors")
    print(
        f"{'':20s} {'median':>10s} {'quartiles':>17s} {'/ torch Adamax':>15s} {'/ torch AdamW':>14s} of copy launches"
    )
    for name, row in result["steps"].items():
        low, high = row["quartiles_ms"]
        adamax, adamw = (row["over"][base] for base in BASELINES)
        print(
            f"{name:20s} {row['median_ms']:7.3f} ms {f'{low:.3f}-{high:.3f}':>14s} ms {adamax:14.2f}x {adamw:13.2f}x "
            f"{row['of_copy_bandwidth']:6.0%} {row.get('kernel_launches', ''):>8}"
        )


def main() -> None:
    """Command line."""
    parser = make_parser("cuda_step", __doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: both")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: both")
    parser.add_argument("--rounds", type=int, default=50, help="rounds that count (default 50)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.cuda_step needs a CUDA device, and torch sees none here", file=sys.stderr)
        sys.exit(2)
    results = []
    for model in arguments.models:
        for dtype in arguments.dtypes:
            results.append(run(model, dtype, arguments.rounds))
            show(results[-1])
            gc.collect()
            torch.cuda.empty_cache()
    write_json(arguments.out, {"rounds": arguments.rounds, "results": results, "machine": machine_facts()})


if __name__ == "__main__":
    sys.exit(status_of(main))
