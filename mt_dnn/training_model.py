"""The network in training, as a method calls it: forward passes, losses, hooks on the embeddings.

Legend: B examples, K classes, E size of a word embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn

from data_utils.task_def import TaskDef
from module.losses import divergence
from mt_dnn.encoder.batch import Batch
from mt_dnn.encoder.model import EmbeddingHook
from mt_dnn.loss import task_loss
from mt_dnn.network import Network
from mt_dnn.precision import Precision


@dataclass(slots=True)
class TrainingModel:
    """The :class:`module.context.Model` of one network, task and precision."""

    network: Network
    task_def: TaskDef
    precision: Precision
    n_examples: int = 0
    passes: Callable[[], Iterable[list[Batch]]] | None = None
    """Gives one pass over the training set."""

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
        return task_loss(self.task_def, logits, batch.labels, reduction="sum")

    def example_losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """(B,)."""
        return task_loss(self.task_def, logits, batch.labels, reduction="none")

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
