"""This project's own training loop, as ``train.py`` runs it."""

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.peers.assignment import Train
from mt_dnn.allocator import keep_memory_between_steps
from mt_dnn.assembly import pick_device
from mt_dnn.backends import cuda_backends
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.interrupt import StopRequest
from mt_dnn.precision import resolve_precision
from mt_dnn.results import Status
from mt_dnn.run_directory import RunDirectory
from mt_dnn.trainer import Trainer

# As with the peers, no weights are written, no events, and no losses but an epoch's.
_QUIET: dict[str, Any] = {
    "save": "none",
    "tensorboard": False,
    "checkpoint_seconds": 1e9,
    "log_per_updates": 1_000_000_000,
}


def prepare(config: RunConfig, data: Datasets, scratch: Path) -> Train:
    """Build everything up to the first step; ``config.method`` says which method it is."""
    keep_memory_between_steps()  # which peers in the same process profit from as well
    device = pick_device(config.device)
    trainer = Trainer(
        dataclasses.replace(config, **_QUIET),
        [data],
        resolve_encoder(config.init_checkpoint),
        RunDirectory(scratch),
        device,
        resolve_precision(config.precision, device),
        StopRequest(),
    )

    def train() -> dict[str, float]:
        with cuda_backends(device, tf32=config.tf32, deterministic=config.deterministic):
            trainer.fit()
        result = trainer.result
        if result.status not in (Status.OK, Status.DEGENERATE) or result.last is None:
            raise RuntimeError(f"{config.method} on {config.task} ended {result.status}: {result.error}")
        (metrics,) = result.last.metrics.values()
        return metrics

    return train
