"""Check on a GPU that this installation computes what it should.

    python -m benchmarks.gpu_check --out check.json

A line per check, and a verdict. Attention of packed batches is held to float64 on the CPU, its dropout to its share and
to its generator. Methods train a tiny random encoder and are held to the same run on the CPU. A run that is stopped
twice and resumed is held, bit for bit, to one in one piece, with --deterministic. Nothing is downloaded. Exit status: 0
all is right, 1 something is not, 2 there is no GPU. How fast it is: ``python -m benchmarks.cuda_step``,
``python -m benchmarks.cuda_pass`` and ``python -m benchmarks.throughput --device cuda``.
"""

import logging
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import random_encoder
from benchmarks.benchmark_figures import write_json
from benchmarks.benchmark_parser import make_parser
from benchmarks.machine import machine_facts
from data_utils.command_line import status_of
from data_utils.errors import in_one_line
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from mt_dnn.assembly import pick_device
from mt_dnn.checkpoint import load_weights
from mt_dnn.config import RunConfig
from mt_dnn.encoder.batch import PackedBatch
from mt_dnn.encoder.varlen import varlen_attention
from mt_dnn.interrupt import Interrupted
from mt_dnn.metrics_log import read_records
from mt_dnn.progress import Progress
from mt_dnn.run import run
from mt_dnn.run_id import run_dir

Checks = dict[str, Callable[[], str]]
"""Each returns what it saw, or raises."""

LENGTHS, HEADS, HEAD_SIZE = (3, 40, 1, 17), 4, 32
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
METHODS = ("vanilla", "pats", "sage", "child_tuning+pats", "freelb", "mixout", "rdrop")
LOSS_TOLERANCE = 0.02  # between a run of 24 steps on the GPU and on the CPU, without dropout; it falls from 0.69
STOPS = (3, 9)


def examples(device: torch.device) -> PackedBatch:
    """A batch of LENGTHS, of which attention without padding reads alone where each example begins."""
    starts = np.cumsum([0, *LENGTHS])
    blank = torch.zeros(int(starts[-1]), dtype=torch.int64)
    labels = torch.zeros(len(LENGTHS), dtype=torch.int64)
    return PackedBatch(
        input_ids=blank, position_ids=blank, token_type_ids=blank, labels=labels, indices=labels,
        first_tokens=torch.from_numpy(starts[:-1]), cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
        max_seqlen=max(LENGTHS), slots=None,
    ).to(device)  # fmt: skip


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of each example by itself, written out: (1, H, n_tokens, d) to (1, n_tokens, H, d)."""
    parts = [
        torch.softmax(a @ b.transpose(-1, -2) * a.shape[-1] ** -0.5, dim=-1) @ c
        for a, b, c in zip(*(x.split_with_sizes(LENGTHS, dim=2) for x in (q, k, v)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


def with_gradients(attend: Callable[..., Tensor], drawn: Tensor) -> Tensor:
    """Output and the gradients of query, key and value, (4, ...) float64 on the CPU; ``drawn`` is the three."""
    q, k, v = (x.detach().requires_grad_() for x in drawn.unbind())
    out = attend(q, k, v)
    weights = torch.linspace(-1.0, 1.0, out.numel(), device=out.device).view(out.shape)
    (out.float() * weights).sum().backward()  # type: ignore[no-untyped-call]
    found = [out.transpose(1, 2), *(x.grad for x in (q, k, v))]
    return torch.stack([x.detach().double().cpu() for x in found if x is not None])


def kernel(device: torch.device, dropout: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The project's attention without padding on a device."""
    batch = examples(device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = varlen_attention(q, k, v, dropout, None, batch)
        if out is None:
            raise RuntimeError(f"no kernel takes {q.dtype} on {device}")
        return out

    return attend


def check_attention(device: torch.device, dtype: torch.dtype) -> str:
    """Hold output and gradients to float64."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(3, 1, HEADS, sum(LENGTHS), HEAD_SIZE, generator=generator).to(dtype)
    expected = with_gradients(attended, drawn.double())
    error = float((with_gradients(kernel(device, 0.0), drawn.to(device)) - expected).abs().max())
    if not error <= TOLERANCE[dtype]:
        raise ValueError(f"differs from float64 by {error:.1e}, more than {TOLERANCE[dtype]:.0e}")
    return f"within {error:.1e} of float64"


def check_dropout(device: torch.device, dtype: torch.dtype, probability: float = 0.1) -> str:
    """Look at the share that is dropped, and draw it again."""
    n = sum(LENGTHS)
    q = torch.zeros(1, HEADS, n, HEAD_SIZE, dtype=dtype, device=device)
    v = torch.ones_like(q)
    attend = kernel(device, probability)
    seed = partial(torch.manual_seed, 5)
    seed()
    outs = torch.stack([attend(q, q, v)[..., 0].float() for _ in range(200)])
    seed()
    again = torch.stack([attend(q, q, v)[..., 0].float() for _ in range(200)])
    if not torch.equal(outs, again):
        raise ValueError("the same state of the generator gives other masks")
    mean = float(outs.mean())  # of kept shares over 1 - p
    if abs(mean - 1.0) > 0.02:
        raise ValueError(f"dropout of {probability} keeps {mean * (1 - probability):.3f}")
    return f"drops {1 - mean * (1 - probability):.3f} for {probability}, the same again from the same state"


def tiny_config(scratch: Path, **changes: Any) -> RunConfig:
    """A run of a few steps on random rows, with an encoder that is made on first use."""
    encoder, data = scratch / "encoder", scratch / "canonical_data"
    if not data.is_dir():
        random_encoder.make_encoder(encoder, "tiny")
        data.mkdir()
        for split, rows in (("train", 96), ("dev", 32)):
            random_encoder.write_rows(data / f"cola_{split}.tsv", rows, telling=True)
    config = RunConfig(
        task_def=GLUE_TASK_DEF, data_dir=data, train_datasets="cola", init_checkpoint=str(encoder), epochs=4,
        batch_size=16, learning_rate=1e-2, precision="fp32", tensorboard=False, log_per_updates=1, save="last",
    )  # fmt: skip
    return replace(config, **changes)


def trained(config: RunConfig, stops: tuple[int, ...] = ()) -> tuple[dict[str, Tensor], float]:
    """Weights and last loss of a run that is stopped after some steps and gone on with."""
    for stop in stops:

        def stop_here(progress: Progress, step: int = stop) -> None:
            if progress.step == step:
                signal.raise_signal(signal.SIGTERM)

        try:
            run(config, stop_here)
        except Interrupted:
            torch.manual_seed(999)  # what a new process would find
    result = run(config)
    if result.error is not None:
        raise RuntimeError(result.error)
    folder = run_dir(config)
    losses = [record["loss"] for record in read_records(folder / "metrics.jsonl") if "loss" in record]
    return load_weights(folder / "checkpoints", "last"), losses[-1]


def check_method(device: str, method: str, scratch: Path) -> str:
    """Hold the last loss of a few steps to the CPU's."""
    config = tiny_config(scratch, method=method, bert_dropout_p=0.0, dropout_p=0.0)
    here, there = (
        trained(replace(config, device=place, output_dir=scratch / "methods" / place))[1] for place in ("cpu", device)
    )
    if not abs(here - there) <= LOSS_TOLERANCE:
        raise ValueError(f"the loss is {there:.4f}, on the CPU {here:.4f}")
    return f"loss {there:.4f}, on the CPU {here:.4f}"


def check_resume(device: str, method: str, scratch: Path) -> str:
    """Hold the weights of a run that was stopped twice to those of one that was not."""
    config = tiny_config(scratch, method=method, device=device, deterministic=True)
    whole, _ = trained(replace(config, output_dir=scratch / "whole"))
    broken, _ = trained(replace(config, output_dir=scratch / "broken"), STOPS)
    differing = [name for name in whole if not torch.equal(whole[name], broken[name])]
    if differing:
        raise ValueError(f"{len(differing)} of {len(whole)} tensors differ after two stops, {differing[0]} among them")
    return f"{len(whole)} tensors are the same after two stops"


def all_checks(device: torch.device, scratch: Path) -> Checks:
    """Every check by its name."""
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in TOLERANCE}
    dtypes = [d for d in names if d is not torch.bfloat16 or torch.cuda.get_device_capability(device) >= (8, 0)]
    return {
        **{f"attention, {names[d]}": partial(check_attention, device, d) for d in dtypes},
        **{f"attention dropout, {names[d]}": partial(check_dropout, device, d) for d in dtypes},
        **{f"method {method}": partial(check_method, str(device), method, scratch) for method in METHODS},
        **{f"resume, {method}": partial(check_resume, str(device), method, scratch) for method in ("pats", "freelb")},
    }


def report(checks: Checks) -> dict[str, dict[str, Any]]:
    """Make the checks, with a line for each; one that raises is wrong, whatever it raises."""
    found: dict[str, dict[str, Any]] = {}
    for name, check in checks.items():
        try:
            found[name] = {"right": True, "saw": check()}
        except Exception as error:
            found[name] = {"right": False, "saw": f"{type(error).__name__}: {in_one_line(error)}"}
        print(f"{'right' if found[name]['right'] else 'WRONG':6s}{name:32s}{found[name]['saw']}", flush=True)
    return found


def main() -> int:
    """Command line; returns its exit status."""
    parser = make_parser("gpu_check", __doc__)
    parser.add_argument("--device", default="cuda", help="cuda or cuda:<index>; default: %(default)s")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu_check needs a CUDA device, and torch sees none here", file=sys.stderr)
        return 2
    device = pick_device(options.device)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        found = report(all_checks(device, Path(scratch)))
    wrong = [name for name, seen in found.items() if not seen["right"]]
    write_json(options.out, {"checks": found, "machine": machine_facts()})
    print(
        f"{len(found) - len(wrong)} of {len(found)} checks are right"
        + (f"; wrong: {', '.join(wrong)}" if wrong else "")
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(status_of(main))
