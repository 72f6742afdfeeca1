"""The state of a run between two steps: kept, saved, resumed."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler

from data_utils.file_hash import sha256_of
from mt_dnn import checkpoint
from mt_dnn.assembly import Parts
from mt_dnn.config import RunConfig
from mt_dnn.data_parallel import Ranks
from mt_dnn.interrupt import Interrupted, StopRequest
from mt_dnn.results import EpochScore
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_reference import EPOCHS
from mt_dnn.sensitivity_watch import SensitivityWatch
from mt_dnn.tracking import Tracker

log = logging.getLogger(__name__)

_GO_ON, _SAVE, _STOP = range(3)  # wish of a rank after a step


@dataclass(slots=True, kw_only=True)
class TrainState:
    """The state that the next step depends on, beside weights, optimizer and method."""

    step: int = 0
    """Optimizer steps made."""
    loss_sum: Tensor
    """() sum of the losses of the examples seen since the last log line; on the device, read only when logged."""
    loss_examples: int = 0
    """Their number."""
    best: EpochScore | None = None
    """The epoch with the highest score so far, the earlier of equals."""
    last: EpochScore | None = None
    """The newest evaluated epoch."""
    task_best: dict[str, EpochScore] = field(default_factory=dict)
    """Of a run with several tasks: task -> its own best epoch, with its scores alone."""
    logits: dict[str, Tensor] = field(default_factory=dict)
    """``<dataset>.best_logits`` and ``<dataset>.last_logits`` -> (N, K)."""
    kept: dict[str, tuple[int, str]] = field(default_factory=dict)
    """``best`` and ``last`` -> epoch and SHA-256 of the weights that lie in the run's checkpoints under that name."""
    seconds: float = 0.0
    """Time spent until ``since``, over all sessions."""
    sessions: int = 1
    """Processes that worked on the run."""
    since: float = field(default_factory=time.monotonic)
    """A reading of this process's clock; no checkpoint holds it."""

    def add_step(self, loss: Tensor, examples: int) -> None:
        """Count a step, and the sum () of the losses of its examples."""
        self.loss_sum += loss
        self.loss_examples += examples
        self.step += 1

    def take_loss(self) -> float:
        """Mean loss of the examples since the last call; the host waits for the device here."""
        loss = float(self.loss_sum) / self.loss_examples
        self.loss_sum, self.loss_examples = torch.zeros_like(self.loss_sum), 0
        return loss

    def spent(self) -> float:
        """Seconds spent on the run until now, over all sessions."""
        now = time.monotonic()
        self.seconds, self.since = self.seconds + now - self.since, now
        return self.seconds

    def to_plain(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "since"}
        for key in ("best", "last"):
            values[key] = asdict(values[key]) if values[key] is not None else None
        values["task_best"] = {task: asdict(score) for task, score in self.task_best.items()}
        return {**values, "loss_sum": self.loss_sum.cpu()}

    def load_plain(self, values: dict[str, Any]) -> None:
        """Load the values of :meth:`to_plain`, and count one session more."""
        scores: dict[str, Any] = {
            key: EpochScore(**values[key]) if values[key] is not None else None for key in ("best", "last")
        }
        scores["task_best"] = {task: EpochScore(**score) for task, score in values.get("task_best", {}).items()}
        loss_sum, sessions = values["loss_sum"].to(self.loss_sum.device), values["sessions"] + 1
        for name, value in {**values, **scores, "loss_sum": loss_sum, "sessions": sessions}.items():
            setattr(self, name, value)


@dataclass(slots=True)
class Checkpointer:
    """Saves a run and resumes it; :mod:`mt_dnn.checkpoint` writes the files."""

    config: RunConfig
    parts: Parts
    scaler: GradScaler
    watch: SensitivityWatch
    state: TrainState
    directory: RunDirectory
    tracker: Tracker
    ranks: Ranks
    """All save and resume at the same step."""
    stop: StopRequest
    saved_at: float = field(default_factory=time.monotonic)
    """When the newest checkpoint was written, on this process's clock."""

    def resume(self) -> None:
        """Go to the newest checkpoint, or to the start.

        Raises:
            SettingError: The checkpoint is damaged, or not the one that another rank sees.
        """
        parts, ranks = self.parts, self.ranks
        loaded = checkpoint.load_last(self.directory.checkpoints)
        ranks.check_same("the step of the newest checkpoint", 0 if loaded is None else loaded.step)
        if loaded is None:
            self._begin_files(metrics_size=0)
            with parts.streams.preserved():
                parts.method.before_fit(parts.context)
            if ranks.size > 1:
                parts.method.load_state_dict(ranks.broadcast_state(parts.method.state_dict()))
            return
        plain = loaded.state
        parts.network.load_state_dict(loaded.model)
        parts.optimizer.load_state_dict(plain["optimizer"])
        parts.method.load_state_dict(plain["method"])
        self.watch.load_state_dict(plain.get("sensitivity", {}), loaded.step)
        self.scaler.load_state_dict(plain["scaler"])
        self.state.load_plain(plain["state"])
        parts.streams.resume(plain["random"], ranks.size, loaded.step)
        self._begin_files(plain["metrics_size"])
        log.info("%s goes on at step %d of %d", self.directory.path, loaded.step, parts.context.total_steps)

    def save_if_due(self) -> None:
        """Save when the time has come or a signal asks for it.

        Raises:
            Interrupted: After the checkpoint that a signal asked for.
            SettingError: The checkpoint cannot be written.
        """
        config, step, total_steps = self.config, self.state.step, self.parts.context.total_steps
        if not self.ranks.synchronizes_at(step, self.state.loss_sum.is_cpu or config.checkpoint_seconds == 0.0):
            return
        due = time.monotonic() - self.saved_at >= config.checkpoint_seconds and step < total_steps
        # Clocks and signals differ between ranks: what one of them wants, all do, at the same step.
        wish = self.ranks.all_reduce_max(_STOP if self.stop.asked else _SAVE if due else _GO_ON)
        if wish != _GO_ON:
            self.save()
        if wish == _STOP:
            raise Interrupted(f"stopped at step {step} of {total_steps}; the same command goes on from there")

    def save(self) -> None:
        """Write a checkpoint."""
        self.state.spent()
        random = self.ranks.gather(self.parts.streams.state())
        self.ranks.on_first(lambda: self._write(random))  # the others wait: if one ended, torchrun would end the writer
        self.saved_at = time.monotonic()

    def _write(self, random: list[dict[str, Any]]) -> None:
        metrics_size = self.tracker.flush()
        checkpoint.sync(self.directory.metrics_jsonl, self.directory.checkpoints)
        checkpoint.save_last(
            self.directory.checkpoints,
            self.state.step,
            self.parts.network,
            {
                "state": self.state.to_plain(),
                "optimizer": self.parts.optimizer.state_dict(),
                "method": self.parts.method.state_dict(),
                "sensitivity": self.watch.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": random,
                "metrics_size": metrics_size,
            },
        )

    def _begin_files(self, metrics_size: int) -> None:
        """Cut metrics and kept weights back to the step of the state: a killed session may have gone further."""
        self.ranks.on_first(lambda: self.tracker.start(metrics_size, self.state.step))  # a tracker may refuse
        if not self.ranks.first:
            return
        for name in EPOCHS:
            file = checkpoint.weights_file(self.directory.checkpoints, name)
            if name not in self.state.kept or not file.is_file() or sha256_of(file) != self.state.kept[name][1]:
                checkpoint.drop_weights(self.directory.checkpoints, name)
                self.state.kept.pop(name, None)
