"""Helpers of the tests that train a tiny network with a method."""

import torch
from safetensors.torch import load_file

from data_utils.task_def import load_task_defs
from mt_dnn.assembly import assemble
from mt_dnn.data import open_datasets
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.precision import resolve_precision
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from mt_dnn.training_step import TrainingStep

CPU = torch.device("cpu")


def final_weights(config):
    """Weights after the last epoch of a run that must neither fail nor diverge."""
    result = run(config)
    assert result.status in (Status.OK, Status.DEGENERATE), result.error
    return load_file(run_dir(config) / "checkpoints" / "last" / "model.safetensors")


_plain: dict[str, dict[str, torch.Tensor]] = {}


def plain_weights(tiny_run, **changes):
    """Final weights of plain fine-tuning or of a control, which many tests compare with: one run for all of them."""
    key = repr(sorted(changes.items()))
    if key not in _plain:
        _plain[key] = final_weights(tiny_run(save="last", **changes))
    return _plain[key]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def assembled(config, total_steps=10):
    """Parts of a run."""
    task_def = load_task_defs(config.task_def)[config.task]
    precision = resolve_precision(config.precision, CPU)
    return assemble(config, [task_def], resolve_encoder(config.init_checkpoint), CPU, precision, total_steps)


def build(config, total_steps=10):
    """Parts of a run, its step, and batches of the task's first 64 rows in 16s."""
    parts = assembled(config, total_steps)
    data = open_datasets(config)
    rows = torch.arange(64).view(4, 16).numpy()
    batches = [[parts.network.encoder.batch(data.train, part, CPU)] for part in rows]
    parts.model.n_examples, parts.model.passes = 64, lambda: iter(batches)
    return parts, TrainingStep(parts, config.global_grad_clipping), batches
