"""The network in training, as a method calls it: forward passes, losses, hooks on the embeddings.

Legend: B examples, K classes, E size of a word embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_utils.task_def import LossCriterion, TaskDef, TaskType
from module.context import TaskKind
from module.losses import divergence
from mt_dnn.config import RunConfig
from mt_dnn.distillation import distillation_criterion
from mt_dnn.encoder.batch import Batch
from mt_dnn.encoder.model import EmbeddingHook
from mt_dnn.loss import Reduction, distillation_loss, task_loss
from mt_dnn.loss_settings import class_weights_of, parse_weights
from mt_dnn.network import Network, head_name
from mt_dnn.precision import Precision


@dataclass(slots=True)
class TaskLoss:
    """The loss that a task is trained with."""

    task_def: TaskDef
    label_smoothing: float = 0.0
    """In [0, 1)."""
    class_weights: Tensor | None = None
    """(K,); None: all 1."""
    weight: float = 1.0
    """Factor on the gradients of the task's batches."""
    kd_criterion: LossCriterion | None = None
    """Distance from the soft labels of batches that have them."""
    kd_weight: float = 1.0
    kd_temperature: float = 1.0

    def __call__(self, logits: Tensor, batch: Batch, reduction: Reduction) -> Tensor:
        """Loss of a batch, and its distance from a teacher, without the task's weight; see :mod:`mt_dnn.loss`."""
        changes = self.label_smoothing, self.class_weights
        loss = task_loss(self.task_def, logits, batch.labels, reduction, *changes)
        if batch.soft_labels is None or self.kd_criterion is None or self.kd_weight == 0.0:
            return loss
        distance = distillation_loss(self.kd_criterion, logits, batch.soft_labels, reduction, self.kd_temperature)
        return loss + self.kd_weight * distance

    @property
    def kind(self) -> TaskKind:
        """The part of the task that methods may know."""
        of = self.task_def
        return TaskKind(of.name, of.task_type is TaskType.Regression, of.adv_loss, f"heads.{head_name(of.name)}.")

    def label_weights(self) -> dict[str, float]:
        """Each label's weight, where classes have weights."""
        if self.class_weights is None:
            return {}
        return dict(zip(self.task_def.label_names, self.class_weights.tolist(), strict=True))


@dataclass(slots=True)
class TrainingModel:
    """The :class:`module.context.Model` of one network, its tasks and a precision."""

    network: Network
    losses: dict[str, TaskLoss]
    """Of each task by its name, the main one first."""
    precision: Precision
    n_examples: int = 0
    passes: Callable[[], Iterable[list[Batch]]] | None = None
    """Gives one pass over the training sets."""

    def choose_loss(self, config: RunConfig, labels: Mapping[str, NDArray[Any]]) -> None:
        """Take the losses that a run trains with.

        Args:
            config: The run.
            labels: Task -> (N,) of the rows that are trained on.

        Raises:
            SettingError: A class without rows has no weight.
        """
        device = next(self.network.parameters()).device
        weights = {} if config.task_weights is None else parse_weights(config.task_weights) or {}
        for task, loss in self.losses.items():
            loss.weight = weights.get(task, 1.0)
            loss.kd_criterion = distillation_criterion(config, loss.task_def)
            loss.kd_weight, loss.kd_temperature = config.kd_weight, config.kd_temperature
            if loss.task_def.task_type is TaskType.Regression:
                continue
            loss.label_smoothing = config.label_smoothing
            if config.class_weights is not None:
                of_classes = class_weights_of(config.class_weights, loss.task_def, labels[task])
                loss.class_weights = torch.tensor(of_classes, dtype=torch.float32, device=device)

    def describe(self) -> dict[str, Any]:
        """Numbers that the run's data gave, for ``run.json``: each label's weight, where classes have weights."""
        weights = {task: found for task, loss in self.losses.items() if (found := loss.label_weights())}
        if not weights:
            return {}
        return {"resolved_class_weights": weights if len(self.losses) > 1 else next(iter(weights.values()))}

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The encoder's layers."""
        return self.network.encoder.layers

    @property
    def embedding_hooks(self) -> list[EmbeddingHook]:
        """Functions that change the word embeddings in training."""
        return self.network.encoder.embedding_hooks

    def embed(self, batch: Batch) -> Tensor:
        """Word embeddings: (n_tokens, E) packed, (B, T, E) padded."""
        return self.network.encoder.embed(batch)

    def logits(self, batch: Batch, inputs_embeds: Tensor | None = None) -> Tensor:
        """(B, K) float32."""
        with self.autocast():
            logits: Tensor = self.network(batch, inputs_embeds)
        return logits

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """() summed over the examples."""
        return self._loss_of(batch)(logits, batch, "sum")

    def example_losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """(B,)."""
        return self._loss_of(batch)(logits, batch, "none")

    def weight(self, batch: Batch) -> float:
        """Factor on the gradients of a batch."""
        return self._loss_of(batch).weight

    def autocast(self) -> AbstractContextManager[object]:
        """Context of the number format, in which ``logits`` computes."""
        return self.precision.autocast()

    def divergence(self, logits: Tensor, other: Tensor) -> Tensor:
        """() summed over the examples."""
        return divergence(logits, other, regression=logits.shape[-1] == 1)

    @property
    def task_kinds(self) -> Sequence[TaskKind]:
        """Of each task, the main one first."""
        return [loss.kind for loss in self.losses.values()]

    def task_kind(self, batch: Batch) -> TaskKind:
        """The task of a batch."""
        return self._loss_of(batch).kind

    def training_batches(self) -> Iterable[list[Batch]]:
        """One pass over the training sets, a list of micro-batches per optimizer step."""
        assert self.passes is not None
        return self.passes()

    def _loss_of(self, batch: Batch) -> TaskLoss:
        if batch.task:
            return self.losses[batch.task]
        (only,) = self.losses.values()
        return only
