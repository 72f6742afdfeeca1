"""The loop: batch -> learning rate -> loss -> gradients -> clip -> method -> step -> log -> evaluate -> checkpoint."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from module.bert_optim import NonFiniteGradient
from mt_dnn import checkpoint
from mt_dnn.assembly import assemble
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets
from mt_dnn.data_parallel import ONE_PROCESS, Ranks
from mt_dnn.encoder.source import EncoderSource
from mt_dnn.epoch_order import steps_per_epoch
from mt_dnn.interrupt import StopRequest
from mt_dnn.loss_settings import changed_loss
from mt_dnn.precision import Precision
from mt_dnn.progress import Progress
from mt_dnn.results import RunResult, Status
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_id
from mt_dnn.schedule import learning_rate_multiplier, learns_nothing
from mt_dnn.score_keeper import Diverged, ScoreKeeper
from mt_dnn.sensitivity_watch import SensitivityWatch
from mt_dnn.tracking import Tracker
from mt_dnn.train_state import Checkpointer, TrainState
from mt_dnn.training_batches import TrainingBatches
from mt_dnn.training_step import TrainingStep

log = logging.getLogger(__name__)

PruneRule = Callable[[int, float], bool]
"""Whether to give a run up, from the epochs made and the best score so far, percent."""


class Trainer:
    """One run in one process, or the part of one rank in it; rank 0 alone writes.

    Attributes:
        result: As in ``result.json``, when the run is over.
    """

    result: RunResult

    def __init__(
        self,
        config: RunConfig,
        data: Sequence[Datasets],
        source: EncoderSource,
        directory: RunDirectory,
        device: torch.device,
        precision: Precision,
        stop: StopRequest,
        on_progress: Callable[[Progress], None] | None = None,
        prune: PruneRule | None = None,
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        self.config, self.data, self.directory, self.ranks = config, data, directory, ranks
        self.on_progress, self.prune = on_progress, prune
        self.state = state = TrainState(loss_sum=torch.zeros((), dtype=torch.float32, device=device))
        task_defs, n_examples = [each.task_def for each in data], [len(each.train_rows) for each in data]
        self.per_epoch = steps_per_epoch(config, n_examples)
        self.total_steps = config.epochs * self.per_epoch
        self.parts = parts = assemble(config, task_defs, source, device, precision, self.total_steps, ranks)
        self.batches = TrainingBatches(config, data, parts, ranks)
        parts.model.choose_loss(config, {each.task_def.name: each.train_labels for each in data})
        parts.model.n_examples, parts.model.passes = sum(n_examples), self.batches.one_pass
        self.watch = SensitivityWatch(parts.network, parts.optimizer, config.sensitivity_beta)
        schedule = partial(
            learning_rate_multiplier, total_steps=self.total_steps, warmup=config.warmup, schedule=config.schedule
        )
        self.step = TrainingStep(parts, config.global_grad_clipping, ranks, schedule)
        self.tracker = Tracker(config, directory)
        self.scores = ScoreKeeper(config, data, parts, state, directory, self.tracker, ranks)
        self.checkpoints = Checkpointer(
            config, parts, self.step.scaler, self.watch, state, directory, self.tracker, ranks, stop
        )
        torch.manual_seed(parts.streams.dropout.seed)

    def fit(self) -> None:
        """Train to the last epoch or until patience ends, from the newest checkpoint if there is one; write the result.

        Raises:
            SettingError: A checkpoint is damaged or a file cannot be written.
            Interrupted: A signal asked to stop; a checkpoint was written.
        """
        config, state, per_epoch = self.config, self.state, self.per_epoch
        self.checkpoints.resume()
        self._warn_of_nothing_to_learn()
        self.ranks.check_copies(self.parts.network.state_dict())
        try:
            for epoch in range(state.step // per_epoch, config.epochs):
                if self.scores.is_over():
                    break
                if state.step % per_epoch == 0 and self._is_hopeless(epoch):
                    self._give_up()
                    return
                for made in self.batches.epoch(epoch, start=state.step % per_epoch):
                    self.parts.context.step, self.parts.context.epoch = state.step, epoch
                    loss, norm = self.step(made.batches, examples=made.examples, tasks=made.tasks)
                    state.add_step(loss, made.examples)
                    end_of_epoch = state.step % per_epoch == 0
                    if end_of_epoch or state.step % config.log_per_updates == 0:
                        self._log(epoch + 1, norm)
                    if end_of_epoch:
                        self.scores.evaluate(epoch + 1)
                    if self.on_progress is not None:
                        best = None if state.best is None else state.best.score
                        self.on_progress(Progress(state.step, self.total_steps, epoch + 1, best))
                    self.checkpoints.save_if_due()
            status, error = self.scores.verdict()
        except (Diverged, NonFiniteGradient) as reason:
            status, error = Status.DIVERGED, str(reason)
            log.warning("%s diverged at step %d: %s", self.directory.path, state.step, error)
        self._finish(status, error)

    def outcome(self, status: Status, error: str | None) -> RunResult:
        """Return the result of the run so far; without its last epoch if that was never reached."""
        config, state, is_over = self.config, self.state, self.scores.is_over()
        return RunResult(
            status=status,
            error=error,
            task=config.task,
            encoder=config.encoder,
            method=config.method,
            seed=config.seed,
            run_id=run_id(config),
            recipe=config.recipe,
            primary_metric=self.scores.primary_metric,
            datasets=self.scores.selecting,
            epochs=config.epochs,
            steps=state.step,
            train_examples=self.parts.model.n_examples,
            seconds=round(state.spent(), 2),
            best=state.best,
            last=state.last if is_over else None,
            stopped_early=is_over and state.last is not None and state.last.epoch < config.epochs,
            sessions=state.sessions,
            tasks=self.scores.by_task() if len(config.tasks) > 1 else {},
        )

    def _log(self, epoch: int, norm: Tensor | None) -> None:
        """Log the running loss; this is the only place of a step at which the host waits for the device."""
        method, context = self.parts.method, self.parts.context
        loss, changed = self.state.take_loss(), changed_loss(self.config.as_dict())
        record = {
            "step": self.state.step,
            "epoch": epoch,
            "loss": loss,
            **({"loss_by": changed} if changed else {}),
            "learning_rate": self.parts.optimizer.param_groups[0]["lr"],
            "grad_norm": None if norm is None else float(norm),
            **method.metrics(context),  # on every rank: it may refuse a step that a GPU has refused
        }
        if self.ranks.first:
            self.tracker.log(record)
        method.check_step(context)
        if not math.isfinite(loss):
            raise Diverged(f"the training loss is {loss}")

    def _warn_of_nothing_to_learn(self) -> None:
        """Warn beforehand of runs in which every method scores the same."""
        if learns_nothing(self.total_steps, self.config.warmup, self.config.schedule):
            log.warning(
                "%s: its only step stands at the start of the warm-up, where the learning rate is 0: nothing is "
                "learned; train for more steps or with warmup 0", self.directory.path,
            )  # fmt: skip
        for fault in self.scores.constant_labels():
            log.warning("%s: %s: the scores will tell nothing", self.directory.path, fault)

    def _is_hopeless(self, epochs: int) -> bool:
        """Whether the rule says to give up after this many epochs; asked before the next, so a resumed run asks too."""
        best = self.state.best
        return self.prune is not None and best is not None and self.prune(epochs, best.choice)

    def _give_up(self) -> None:
        """End the run as pruned; if weights are kept at all, a checkpoint is, from which it can go on."""
        if self.config.save != "none":
            self.checkpoints.save()
        else:
            checkpoint.drop_last(self.directory.checkpoints)
        self._write_result(self.outcome(Status.PRUNED, None))

    def _finish(self, status: Status, error: str | None) -> None:
        """Write predictions and sensitivities, then the result; the checkpoints to resume from go last."""
        self.result = self.outcome(status, error)
        if self.ranks.first:
            self.directory.write_predictions(self.scores.predictions())
            self.directory.sensitivity_json.unlink(missing_ok=True)  # of a session that watched and was killed here
            if status is not Status.DIVERGED:
                self.watch.write(self.directory)
            self._write_result(self.result)
            checkpoint.drop_last(self.directory.checkpoints)

    def _write_result(self, result: RunResult) -> None:
        """Write the result with the checksums of its files."""
        self.result = replace(result, files=self.directory.hashes() | self.scores.weights_of(result))
        checkpoint.sync(self.directory.metrics_jsonl, self.directory.checkpoints)
        self.directory.write_result(self.result)
        self.tracker.close(done=True)
