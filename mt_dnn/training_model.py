"""The network in training, as a method calls it: forward passes, losses, hooks on the embeddings.

Legend: B examples, K classes, E size of a word embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_utils.task_def import TaskDef
from module.losses import divergence
from mt_dnn.config import RunConfig
from mt_dnn.encoder.batch import Batch
from mt_dnn.encoder.model import EmbeddingHook
from mt_dnn.loss import Reduction, task_loss
from mt_dnn.loss_settings import class_weights_of
from mt_dnn.network import Network
from mt_dnn.precision import Precision


@dataclass(slots=True)
class TrainingModel:
    """The :class:`module.context.Model` of one network, task and precision."""

    network: Network
    task_def: TaskDef
    precision: Precision
    label_smoothing: float = 0.0
    """Of ``loss`` and ``example_losses``; in [0, 1)."""
    class_weights: Tensor | None = None
    """(K,) of the same losses; None: all 1."""
    n_examples: int = 0
    passes: Callable[[], Iterable[list[Batch]]] | None = None
    """Gives one pass over the training set."""

    def choose_loss(self, config: RunConfig, labels: NDArray[Any]) -> None:
        """Take the loss that a run trains with.

        Args:
            config: The run.
            labels: (N,) of the rows that are trained on.

        Raises:
            SettingError: A class without rows has no weight.
        """
        self.label_smoothing = config.label_smoothing
        if config.class_weights is not None:
            weights = class_weights_of(config.class_weights, self.task_def, labels)
            device = next(self.network.parameters()).device
            self.class_weights = torch.tensor(weights, dtype=torch.float32, device=device)

    def describe(self) -> dict[str, dict[str, float]]:
        """Numbers that the run's data gave, for ``run.json``: each label's weight, where classes have weights."""
        if self.class_weights is None:
            return {}
        weights = zip(self.task_def.label_names, self.class_weights.tolist(), strict=True)
        return {"resolved_class_weights": dict(weights)}

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The encoder's layers."""
        return self.network.encoder.layers

    @property
    def embedding_hooks(self) -> list[EmbeddingHook]:
        """Functions that change the word embeddings in training."""
        return self.network.encoder.embedding_hooks

    @property
    def regression(self) -> bool:
        """Whether the one output is a score."""
        return self.task_def.n_class == 1

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
        return self._loss(logits, batch, "sum")

    def example_losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """(B,)."""
        return self._loss(logits, batch, "none")

    def autocast(self) -> AbstractContextManager[object]:
        """Context of the number format, in which ``logits`` computes."""
        return self.precision.autocast()

    def divergence(self, logits: Tensor, other: Tensor) -> Tensor:
        """() summed over the examples."""
        return divergence(logits, other, self.regression)

    def training_batches(self) -> Iterable[list[Batch]]:
        """One pass over the training set, a list of micro-batches per optimizer step."""
        assert self.passes is not None
        return self.passes()

    def _loss(self, logits: Tensor, batch: Batch, reduction: Reduction) -> Tensor:
        changes = self.label_smoothing, self.class_weights
        return task_loss(self.task_def, logits, batch.labels, reduction, *changes)
