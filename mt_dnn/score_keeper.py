"""The scores of a run: of every epoch, the best of them, and the verdict on them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_utils.batching import evaluation_batches
from data_utils.metrics import compute_metrics
from data_utils.task_def import TaskDef, TaskType
from mt_dnn import checkpoint
from mt_dnn.assembly import Parts
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets
from mt_dnn.data_parallel import Ranks
from mt_dnn.evaluation import all_logits
from mt_dnn.results import MEAN, EpochScore, RunResult, Status, TaskScores
from mt_dnn.run_directory import RunDirectory
from mt_dnn.tracking import Tracker
from mt_dnn.train_state import TrainState

log = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """A loss, weight or logit is NaN or infinite."""


@dataclass
class ScoreKeeper:
    """Scores the network after every epoch and keeps logits and weights of the last and of the best one."""

    config: RunConfig
    data: Sequence[Datasets]
    """Of each task, the main one first."""
    parts: Parts
    state: TrainState
    """Holds scores and logits."""
    directory: RunDirectory
    """Holds weights."""
    tracker: Tracker
    ranks: Ranks

    def __post_init__(self) -> None:
        """Refuse examples that the encoder does not take."""
        self.sets = {name: cache for each in self.data for name, cache in each.evaluated.items()}
        for name, cache in self.sets.items():
            self.parts.network.encoder.limits.check(name, cache)
        self.batches = {
            name: evaluation_batches(cache.lengths, self.config.eval_batch_tokens) for name, cache in self.sets.items()
        }

    @property
    def selecting(self) -> list[str]:
        """The dev sets that the score is made of."""
        return [name for each in self.data for name in each.selecting]

    @property
    def primary_metric(self) -> str:
        """Name of the score: the task's metric, or the mean over tasks of each one's."""
        return str(self.data[0].task_def.primary_metric) if len(self.data) == 1 else MEAN

    def constant_labels(self) -> list[str]:
        """Return a clause for each set with equal labels, whose scores tell nothing; the training set comes first.

        Sets that are only shown are left out.
        """
        return [fault for each in self.data for fault in _constant_labels(each)]

    def evaluate(self, epoch: int) -> None:
        """Score every set; keep logits and weights of the last and of the best epoch.

        Args:
            epoch: The epoch that is over, from 1.

        Raises:
            Diverged: A weight or a logit is NaN or infinite.
        """
        config, state, parts = self.config, self.state, self.parts
        self.ranks.check_copies(parts.network.state_dict())
        self._check_weights(epoch)
        raw = self.scores(epoch)[0] if parts.method.evaluates_other_weights else None
        with parts.method.evaluation(parts.context):
            last, logits = self.scores(epoch)
            state.last = last
            state.logits |= {f"{name}.last_logits": values for name, values in logits.items()}
            for each in self.data:
                if is_better(_of_task(each, last), self.best_of(each)):
                    state.task_best[each.task_def.name] = _of_task(each, last)
                    state.logits |= {f"{name}.best_logits": logits[name] for name in each.evaluated}
            if is_better(last, state.best):
                state.best = last
                if config.save in ("best", "both"):
                    self._keep_weights("best", epoch)
            if self.is_over() and config.save in ("last", "both"):
                self._keep_weights("last", epoch)
        best = state.best or last
        if self.ranks.first:
            self.tracker.evaluated(state.step, last, raw)
        log.info(
            "%s %s %s seed=%d epoch %d/%d %s %s best %s (epoch %d)",
            config.task, config.encoder, config.method, config.seed, epoch, config.epochs,
            self.primary_metric, f"{last.score:z.2f}", f"{best.score:z.2f}", best.epoch,
        )  # fmt: skip

    def best_of(self, task: Datasets) -> EpochScore | None:
        """The best epoch so far of one task; of a run with one it is the run's."""
        return self.state.best if len(self.data) == 1 else self.state.task_best.get(task.task_def.name)

    def is_over(self) -> bool:
        """Whether the newest epoch is the last: no more are wanted, or too many were no better than the best."""
        best, last, patience = self.state.best, self.state.last, self.config.patience
        if last is None or best is None:
            return False
        return last.epoch == self.config.epochs or (patience is not None and last.epoch - best.epoch >= patience)

    def scores(self, epoch: int) -> tuple[EpochScore, dict[str, Tensor]]:
        """Scores of the weights as they are, the mean over tasks, and each set's (N, K) logits.

        Raises:
            Diverged: A logit is NaN or infinite; metrics would make a class or a number of it.
        """
        parts, logits, metrics = self.parts, {}, {}
        where: dict[str, Any] = {"device": parts.streams.device, "precision": parts.model.precision}
        for each in self.data:
            task_def = each.task_def
            for name, cache in each.evaluated.items():
                found = all_logits(
                    parts.network, cache, self.batches[name], task_def.n_class,
                    **where, ranks=self.ranks, task=task_def.name,
                )  # fmt: skip
                if not np.isfinite(found).all():
                    raise Diverged(f"a logit of {name} after epoch {epoch} is NaN or infinite")
                logits[name] = torch.from_numpy(found)
                metrics[name] = compute_metrics(task_def, found, np.asarray(cache.labels))
        whole = EpochScore(epoch, math.nan, metrics)
        each_task = [_of_task(each, whole) for each in self.data]
        held_out = [score.held_out for score in each_task if score.held_out is not None]
        return replace(
            whole,
            score=float(np.mean([score.score for score in each_task])),
            held_out=float(np.mean(held_out)) if held_out else None,
        ), logits

    def verdict(self) -> tuple[Status, str | None]:
        """Return the status of a run that reached its end: ok, or degenerate if the scores of a task tell nothing.

        Returns:
            The status, and why it is degenerate if that is not because one class or value is predicted for every
            example.
        """
        for each in self.data:
            status, error = self._verdict_on(each)
            if status is not Status.OK:
                alone = len(self.data) == 1
                return status, error if alone else error or f"all predictions for {each.task_def.name} are the same"
        return Status.OK, None

    def by_task(self) -> dict[str, TaskScores]:
        """Scores of each task so far."""
        scores = {}
        for each in self.data:
            status, error = self._verdict_on(each) if self.is_over() else (Status.OK, None)
            scores[each.task_def.name] = TaskScores(
                status=status,
                error=error,
                primary_metric=str(each.task_def.primary_metric),
                datasets=list(each.selecting),
                train_examples=len(each.train_rows),
                best=self.best_of(each),
                last=_of_task(each, self.state.last) if self.state.last is not None and self.is_over() else None,
            )
        return scores

    def _verdict_on(self, task: Datasets) -> tuple[Status, str | None]:
        """Return the status of one task of a run that reached its end; see :meth:`verdict`."""
        for fault in _constant_labels(task):
            return Status.DEGENERATE, fault
        if all(_is_constant(self.state.logits[f"{name}.best_logits"]) for name in task.selecting):
            return Status.DEGENERATE, None
        last = self.state.last
        assert last is not None
        for name, epoch in (("best", self.best_of(task)), ("last", _of_task(task, last))):
            assert epoch is not None
            if math.isnan(epoch.score) or math.isnan(epoch.choice):
                where = "the dev sets" if math.isnan(epoch.score) else "the held-out set"
                return Status.DEGENERATE, f"{task.task_def.primary_metric} of the {name} epoch is NaN on {where}"
        return Status.OK, None

    def predictions(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays of ``predictions.npz``: see :meth:`mt_dnn.run_directory.RunDirectory.write_predictions`."""
        arrays: dict[str, npt.NDArray[Any]] = {name: logits.numpy() for name, logits in self.state.logits.items()}
        for name, cache in self.sets.items():
            arrays[f"{name}.uids"] = np.asarray(cache.uids)
            arrays[f"{name}.labels"] = np.asarray(cache.labels)
        return arrays

    def weights_of(self, result: RunResult) -> dict[str, str]:
        """Drop kept weights of epochs that a result does not name.

        Returns:
            Path in the run's folder -> SHA-256 of the others.
        """
        files = {}
        for name, score in (("best", result.best), ("last", result.last)):
            epoch, digest = self.state.kept.get(name, (None, ""))
            if score is None or score.epoch != epoch:
                checkpoint.drop_weights(self.directory.checkpoints, name)
                continue
            file = checkpoint.weights_file(self.directory.checkpoints, name)
            files[file.relative_to(self.directory.path).as_posix()] = digest
        return files

    def _keep_weights(self, name: str, epoch: int) -> None:
        if self.ranks.first:
            digest = checkpoint.save_weights(self.directory.checkpoints, name, self.parts.network)
            self.state.kept[name] = epoch, digest

    def _check_weights(self, epoch: int) -> None:
        """Check the weights themselves: no dev example need have the word of a broken embedding.

        Raises:
            Diverged: A weight is NaN or infinite.
        """
        named = {name: p.detach() for name, p in self.parts.network.named_parameters() if p.numel()}
        finite = torch.stack([torch.linalg.vector_norm(p, math.inf) for p in named.values()]).isfinite().tolist()
        if not all(finite):
            name = list(named)[finite.index(False)]
            raise Diverged(f"the weight {name!r} is NaN or infinite after epoch {epoch}")


def is_better(new: EpochScore, best: EpochScore | None) -> bool:
    """Whether ``new`` beats ``best``; a NaN score (of constant predictions) is beaten by every number."""
    if best is None or math.isnan(new.choice):
        return best is None
    return math.isnan(best.choice) or new.choice > best.choice


def _of_task(task: Datasets, scores: EpochScore) -> EpochScore:
    """The scores of one task of an epoch."""
    return EpochScore.of_task(scores, task.evaluated, task.selecting, task.task_def.primary_metric)


def _constant_labels(task: Datasets) -> list[str]:
    """Return a clause for each set of a task with equal labels."""
    task_def = task.task_def
    sets = {task_def.dataset_name("train"): task.train_labels}
    scored = task.selecting | task.held_out
    sets |= {name: np.asarray(cache.labels) for name, cache in scored.items()}
    return [
        f"all {len(labels)} labels of {name} are {_shown(labels[0], task_def)}"
        if len(labels) > 1
        else f"{name} has one row"
        for name, labels in sets.items()
        if (labels == labels[0]).all()
    ]


def _is_constant(logits: Tensor) -> bool:
    """Whether (N, K) logits predict one class, or one value in a regression (K = 1), for all N examples."""
    predictions = logits.argmax(dim=1) if logits.shape[1] > 1 else logits[:, 0]
    return bool(torch.all(predictions == predictions[0]))


def _shown(label: np.generic, task_def: TaskDef) -> str:
    if task_def.task_type is TaskType.Regression:
        return f"{float(label):g}"
    return task_def.label_names[int(label)]
