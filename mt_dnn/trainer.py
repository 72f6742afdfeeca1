"""The loop: batch -> loss -> gradients -> clip -> method -> step -> schedule -> evaluate."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_utils.batching import epoch_batches, evaluation_batches, share_of, training_subset
from data_utils.file_hash import sha256_of
from module.bert_optim import Adamax, NonFiniteGradient
from module.seeds import stream_seed
from mt_dnn import checkpoint
from mt_dnn.assembly import assemble, pick_device
from mt_dnn.config import RunConfig, run_id
from mt_dnn.data import Datasets
from mt_dnn.data_parallel import ONE_PROCESS, Ranks
from mt_dnn.encoder.batch import Batch
from mt_dnn.encoder.source import EncoderSource
from mt_dnn.evaluation import evaluate_sets
from mt_dnn.interrupt import Interrupted, StopRequest
from mt_dnn.precision import resolve_precision
from mt_dnn.prefetch import prefetch
from mt_dnn.results import EpochScore, RunDirectory, RunResult, Status
from mt_dnn.schedule import learning_rate_multiplier, learns_nothing
from mt_dnn.sensitivity_watch import SensitivityWatch
from mt_dnn.tracking import Tracker
from mt_dnn.train_state import TrainState
from mt_dnn.training_step import TrainingStep
from mt_dnn.verdict import constant_labels, verdict

log = logging.getLogger(__name__)

_GO_ON, _SAVE, _STOP = range(3)  # what a rank wants after a step


PruneRule = Callable[[int, float], bool]
"""Whether to give a run up, from the epochs made and the best score so far, percent."""


class Diverged(RuntimeError):
    """A loss, weight or logit is NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, for progress displays."""

    step: int
    total_steps: int
    epoch: int
    best_score: float | None


class Trainer:
    """One run in one process, or the part of one rank in it; rank 0 alone writes."""

    def __init__(
        self,
        config: RunConfig,
        data: Datasets,
        source: EncoderSource,
        directory: RunDirectory,
        stop: StopRequest,
        on_progress: Callable[[Progress], None] | None,
        prune: PruneRule | None = None,
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        self.config, self.data, self.directory, self.ranks = config, data, directory, ranks
        self.stop, self.on_progress, self.prune = stop, on_progress, prune
        self.device = pick_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        chosen = training_subset(len(data.train_rows), config.seed, config.train_fraction, config.train_size)
        self.rows = data.train_rows[chosen]
        self.lengths = data.train.lengths[self.rows]
        self.steps_per_epoch = math.ceil(len(self.rows) / config.window)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.state = TrainState(loss_sum=torch.zeros((), dtype=torch.float32, device=self.device))
        self.evaluation_batches = {
            name: evaluation_batches(cache.lengths, config.eval_batch_tokens) for name, cache in data.evaluated.items()
        }
        self.tracker = Tracker(directory, config.tensorboard)
        self._started = self._saved_at = time.monotonic()
        parts = assemble(config, data.task_def, source, self.device, self.precision, self.total_steps, ranks)
        limits = parts.network.encoder.limits
        limits.check(data.task_def.dataset_name("train"), data.train, self.rows)
        for name, cache in data.evaluated.items():
            limits.check(name, cache)
        parts.model.n_examples, parts.model.passes = len(self.rows), self._one_pass
        self.network, self.method, self.optimizer = parts.network, parts.method, parts.optimizer
        self.context, self.streams = parts.context, parts.streams
        self.watch = SensitivityWatch(parts.network, parts.optimizer, config.sensitivity_beta)
        self.step = TrainingStep(parts, self.precision, config.global_grad_clipping, self.device, ranks)
        torch.manual_seed(self.streams.dropout.seed)

    def fit(self) -> RunResult:
        """Train to the last epoch and write the result.

        Raises:
            SettingError: a checkpoint is damaged or a file cannot be written.
            Interrupted: a signal asked to stop; a checkpoint was written.
        """
        self._resume()
        self._warn_of_nothing_to_learn()
        self.ranks.check_copies(self.network.state_dict())
        error = None
        try:
            for _ in self._steps():
                self._maybe_checkpoint()
                if self._is_hopeless():
                    return self._give_up()
        except (Diverged, NonFiniteGradient) as reason:
            error = str(reason)
            self.state.last = None  # the last epoch was never reached
            log.warning("%s diverged at step %d: %s", self.directory.path, self.state.step, error)
        result = self.result(Status.DIVERGED, error) if error else self._ended()
        if self.ranks.first:
            self.directory.write_predictions(self._predictions())
            self.directory.sensitivity_json.unlink(missing_ok=True)  # of a session that watched and was killed here
            if error is None:
                self.watch.write(self.directory)
            result = self._write_result(result)
            checkpoint.drop_last(self.directory.checkpoints)
            self.tracker.close()
        return result

    def _write_result(self, result: RunResult) -> RunResult:
        """Write the result with the checksums of its files; kept weights of epochs that it does not name go first."""
        files = self.directory.hashes()
        for name, score in (("best", result.best), ("last", result.last)):
            epoch, digest = self.state.kept.get(name, (None, ""))
            if score is None or score.epoch != epoch:
                checkpoint.drop_weights(self.directory.checkpoints, name)
                continue
            file = checkpoint.weights_file(self.directory.checkpoints, name)
            files[file.relative_to(self.directory.path).as_posix()] = digest
        result = replace(result, files=files)
        self.directory.write_result(result)
        return result

    def _warn_of_nothing_to_learn(self) -> None:
        """Say beforehand what makes every method score the same."""
        if learns_nothing(self.total_steps, self.config.warmup, self.config.schedule):
            log.warning(
                "%s: its only step stands at the start of the warm-up, where the learning rate is 0: nothing is "
                "learned; train for more steps or with warmup 0", self.directory.path,
            )  # fmt: skip
        for fault in constant_labels(self.data, self.rows):
            log.warning("%s: %s: the scores will tell nothing", self.directory.path, fault)

    def _is_hopeless(self) -> bool:
        """Whether an epoch but the last is over and the rule says to give up."""
        epoch, within = divmod(self.state.step, self.steps_per_epoch)
        if self.prune is None or within or epoch == self.config.epochs or self.state.best is None:
            return False
        return self.prune(epoch, self.state.best.choice)

    def _give_up(self) -> RunResult:
        """End here as pruned; where weights are kept at all, a checkpoint is, from which the run can go on."""
        if self.config.save != "none":
            self._checkpoint()
        else:
            checkpoint.drop_last(self.directory.checkpoints)
        self.state.last = None  # the last epoch was never reached
        result = self._write_result(self.result(Status.PRUNED, None))
        self.tracker.close()
        return result

    def _steps(self) -> Iterator[None]:
        """The loop, from where the state stands; yields between steps."""
        config, state = self.config, self.state
        for epoch in range(state.step // self.steps_per_epoch, config.epochs):
            windows = epoch_batches(
                len(self.rows), config.window, config.seed, epoch, config.sampler, lengths=self.lengths
            )[state.step % self.steps_per_epoch :]
            for window, batches in zip(windows, prefetch(windows, self._own_batches), strict=True):
                norm = self._step(batches, len(window))
                end_of_epoch = state.step % self.steps_per_epoch == 0
                if end_of_epoch or state.step % config.log_per_updates == 0:
                    self._log(epoch + 1, norm)
                if end_of_epoch:
                    self._evaluate(epoch + 1)
                if self.on_progress is not None:
                    best = state.best.score if state.best is not None else None
                    self.on_progress(Progress(state.step, self.total_steps, epoch + 1, best))
                yield

    def _own_batches(self, window: npt.NDArray[np.int64]) -> list[Batch]:
        """This rank's micro-batches of one optimizer step."""
        return self._batches(share_of(window, self.lengths, self.ranks.rank, self.ranks.size))

    def _batches(self, window: npt.NDArray[np.int64]) -> list[Batch]:
        """Micro-batches on the device; ``window`` holds places in the training subset."""
        rows = self.rows[window]
        parts = np.split(rows, range(self.config.batch_size, len(rows), self.config.batch_size))
        return [self.network.encoder.batch(self.data.train, part, self.device) for part in parts if len(part)]

    def _one_pass(self) -> Iterator[list[Batch]]:
        """The training set once, in an order that no epoch has."""
        seed = stream_seed(self.config.seed, "first pass")
        for window in epoch_batches(len(self.rows), self.config.window, seed, 0):
            yield self._batches(window)

    def _step(self, batches: list[Batch], examples: int) -> Tensor | None:
        """One optimizer step on this rank's of its examples; returns the gradient norm before clipping."""
        config, state = self.config, self.state
        multiplier = learning_rate_multiplier(state.step, self.total_steps, config.warmup, config.schedule)
        self.context.step, self.context.epoch = state.step, state.step // self.steps_per_epoch
        loss, norm = self.step(batches, multiplier, examples)
        state.loss_sum += loss
        state.loss_examples += examples
        state.step += 1
        return norm

    def _log(self, epoch: int, norm: Tensor | None) -> None:
        """Read the running loss from the device; the only place of a step where the host waits for it."""
        state = self.state
        loss = float(state.loss_sum) / state.loss_examples
        record = {
            "step": state.step,
            "epoch": epoch,
            "loss": loss,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "grad_norm": None if norm is None else float(norm),
            **self.method.metrics(self.context),  # on every rank: it may refuse a step that a GPU has refused
        }
        if self.ranks.first:
            self.tracker.log(record)
        state.loss_sum, state.loss_examples = torch.zeros((), dtype=torch.float32, device=self.device), 0
        if isinstance(self.optimizer, Adamax):
            self.optimizer.check_refused()  # on a GPU it could not say so at the step itself
        if not math.isfinite(loss):
            raise Diverged(f"the training loss is {loss}")

    def _evaluate(self, epoch: int) -> None:
        """Score every set; keep logits and weights of the last and of the best epoch."""
        config, state, first = self.config, self.state, self.ranks.first
        self.ranks.check_copies(self.network.state_dict())
        self._check_weights(epoch)
        raw = self._dev_scores(epoch)[0] if self.method.evaluates_other_weights else None
        with self.method.evaluation(self.context):
            last, logits = self._dev_scores(epoch)
            state.last = last
            state.logits |= {f"{name}.last_logits": values for name, values in logits.items()}
            if _better(last, state.best):
                state.best = last
                state.logits |= {f"{name}.best_logits": values for name, values in logits.items()}
                if first and config.save in ("best", "both"):
                    self._keep("best", epoch)
            if first and epoch == config.epochs and config.save in ("last", "both"):
                self._keep("last", epoch)
        best = state.best or last
        if first:
            self.tracker.evaluated(state.step, last, raw)
        log.info(
            "%s %s %s seed=%d epoch %d/%d %s %s best %s (epoch %d)",
            config.task, config.encoder, config.method, config.seed, epoch, config.epochs,
            self.data.task_def.primary_metric, f"{last.score:z.2f}", f"{best.score:z.2f}", best.epoch,
        )  # fmt: skip

    def _keep(self, name: str, epoch: int) -> None:
        self.state.kept[name] = epoch, checkpoint.save_weights(self.directory.checkpoints, name, self.network)

    def _check_weights(self, epoch: int) -> None:
        """Look for what no dev example need show, such as the embedding of a word that none of them has.

        Raises:
            Diverged: a weight is NaN or infinite.
        """
        named = {name: p.detach() for name, p in self.network.named_parameters() if p.numel()}
        finite = torch.stack([torch.linalg.vector_norm(p, math.inf) for p in named.values()]).isfinite().tolist()
        if not all(finite):
            name = list(named)[finite.index(False)]
            raise Diverged(f"the weight {name!r} is NaN or infinite after epoch {epoch}")

    def _dev_scores(self, epoch: int) -> tuple[EpochScore, dict[str, Tensor]]:
        """Scores of the weights as they are, and each set's (N, K) logits.

        Raises:
            Diverged: a logit is NaN or infinite; metrics would make a class or a number of it.
        """
        data, task_def, batches = self.data, self.data.task_def, self.evaluation_batches
        found = evaluate_sets(self.network, data.evaluated, task_def, batches, self.device, self.precision, self.ranks)
        for name, evaluation in found.items():
            if not np.isfinite(evaluation.logits).all():
                raise Diverged(f"a logit of {name} after epoch {epoch} is NaN or infinite")
        metrics = {name: evaluation.metrics for name, evaluation in found.items()}
        score = float(np.mean([metrics[name][task_def.primary_metric] for name in data.dev]))
        held_out = next((metrics[name][task_def.primary_metric] for name in data.held_out), None)
        logits = {name: torch.from_numpy(evaluation.logits) for name, evaluation in found.items()}
        return EpochScore(epoch, score, metrics, held_out), logits

    def _maybe_checkpoint(self) -> None:
        """Write a resume checkpoint when its time has come or a signal asks for one.

        Raises:
            Interrupted: after the checkpoint that a signal asked for.
        """
        state = self.state
        if not self.ranks.talks_at(state.step, self.device.type == "cpu" or self.config.checkpoint_seconds == 0.0):
            return
        now = time.monotonic()
        due = now - self._saved_at >= self.config.checkpoint_seconds and state.step < self.total_steps
        # Clocks and signals differ between ranks: what one of them wants, all do, at the same step.
        wish = self.ranks.highest(_STOP if self.stop.asked else _SAVE if due else _GO_ON)
        if wish == _GO_ON:
            return
        self._checkpoint()
        if wish == _STOP:
            raise Interrupted(
                f"stopped at step {state.step} of {self.total_steps}; the same command goes on from there"
            )

    def _checkpoint(self) -> None:
        """Write a resume checkpoint."""
        state, now = self.state, time.monotonic()
        state.seconds, self._started = state.seconds + now - self._started, now
        random = self.ranks.gather(self.streams.state())
        self.ranks.on_first(lambda: self._save(random))  # the others wait: if one ended, torchrun would end the writer
        self._saved_at = time.monotonic()

    def _save(self, random: list[dict[str, Any]]) -> None:
        checkpoint.save_last(
            self.directory.checkpoints,
            self.state.step,
            self.network,
            {
                "state": self.state.to_plain(),
                "optimizer": self.optimizer.state_dict(),
                "method": self.method.state_dict(),
                "sensitivity": self.watch.state_dict(),
                "scaler": self.step.scaler.state_dict(),
                "random": random,
                "metrics_size": self.tracker.flush(),
            },
        )

    def _resume(self) -> None:
        """Go to the newest checkpoint, or to the start."""
        loaded = checkpoint.load_last(self.directory.checkpoints)
        self.ranks.check_same("the step of the newest checkpoint", 0 if loaded is None else loaded.step)
        if loaded is None:
            if self.ranks.first:
                self._begin_files(metrics_size=0)
            with self.streams.aside():
                self.method.before_fit(self.context)
            if self.ranks.size > 1:
                self.method.load_state_dict(self.ranks.state_of_first(self.method.state_dict()))
            return
        plain = loaded.state
        self.network.load_state_dict(loaded.model)
        self.optimizer.load_state_dict(plain["optimizer"])
        self.method.load_state_dict(plain["method"])
        self.watch.load_state_dict(plain.get("sensitivity", {}), loaded.step)
        self.step.scaler.load_state_dict(plain["scaler"])
        self.state = TrainState.from_plain(plain["state"], self.device)
        self.streams.resume(plain["random"], self.ranks.size, loaded.step)
        if self.ranks.first:
            self._begin_files(plain["metrics_size"])
        log.info("%s goes on at step %d of %d", self.directory.path, loaded.step, self.total_steps)

    def _begin_files(self, metrics_size: int) -> None:
        """Bring metrics and kept weights back to where the state stands: a killed session may have gone further."""
        self.tracker.start(metrics_size, self.state.step)
        for name in checkpoint.WEIGHTS:
            file = checkpoint.weights_file(self.directory.checkpoints, name)
            if name not in self.state.kept or not file.is_file() or sha256_of(file) != self.state.kept[name][1]:
                checkpoint.drop_weights(self.directory.checkpoints, name)
                self.state.kept.pop(name, None)

    def _ended(self) -> RunResult:
        """The result of a run that reached its end."""
        state, data = self.state, self.data
        assert state.best is not None
        assert state.last is not None
        logits = {name: state.logits[f"{name}.best_logits"] for name in data.dev}
        return self.result(*verdict(data, self.rows, logits, {"best": state.best, "last": state.last}))

    def _predictions(self) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any]] = {name: logits.numpy() for name, logits in self.state.logits.items()}
        for name, cache in self.data.evaluated.items():
            arrays[f"{name}.uids"] = np.asarray(cache.uids)
            arrays[f"{name}.labels"] = np.asarray(cache.labels)
        return arrays

    def result(self, status: Status, error: str | None) -> RunResult:
        """The result as the state stands."""
        config, state = self.config, self.state
        return RunResult(
            status=status,
            error=error,
            task=config.task,
            encoder=config.encoder,
            method=config.method,
            seed=config.seed,
            run_id=run_id(config),
            recipe=config.recipe,
            primary_metric=str(self.data.task_def.primary_metric),
            datasets=list(self.data.dev),
            epochs=config.epochs,
            steps=state.step,
            train_examples=len(self.rows),
            seconds=round(state.seconds + time.monotonic() - self._started, 2),
            best=state.best,
            last=state.last,
            sessions=state.sessions,
        )


def _better(new: EpochScore, best: EpochScore | None) -> bool:
    """Whether ``new`` beats ``best``; a NaN score (of constant predictions) is beaten by every number."""
    if best is None or math.isnan(new.choice):
        return best is None
    return math.isnan(best.choice) or new.choice > best.choice
