"""The network in ``transformers.Trainer`` as methods call it: batches, forward passes, losses.

Legend: B examples, T tokens of the longest, N predictions of a batch (its examples, or its labelled tokens), K classes,
E size of a word embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..context import TaskKind
from ..evaluating import evaluating
from ..losses import divergence
from ..param_index import stack_modules
from .trainer_task import Task

IGNORED = -100  # label of tokens that count for nothing, in transformers


@dataclass(frozen=True, slots=True)
class TrainerBatch:
    """A micro-batch, padded."""

    inputs: Mapping[str, Any]
    """Keyword arguments of the model, without labels."""
    labels: Tensor
    """(B,), or (B, T) with IGNORED where there is none."""
    size: int
    """N."""

    @property
    def mask(self) -> Tensor:
        """(B, T) 1 on real tokens."""
        mask = self.inputs.get("attention_mask")
        return torch.ones_like(self.inputs["input_ids"]) if mask is None else mask

    @property
    def max_seqlen(self) -> int:
        """T."""
        return self.mask.shape[1]

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of each example."""
        return self.mask.sum(dim=1)

    def sum_of_examples(self, values: Tensor) -> Tensor:
        """(B, T) -> (B,) over the real tokens."""
        return (values * self.mask).sum(dim=1)

    def to_tokens(self, values: Tensor) -> Tensor:
        """(B,) one number per example -> (B, T), 0 on padding."""
        return values[:, None] * self.mask


@dataclass(slots=True)
class TrainerModel:
    """The :class:`module.context.Model` of any model of ``transformers``, or one with such a forward pass.

    Word embeddings are replaced where the model looks them up, so it always gets its ``input_ids``: families count
    positions and find the last token by them.
    """

    network: nn.Module
    task: Task
    label: str
    """Name of the labels among the inputs."""
    autocast: Callable[[], AbstractContextManager[object]]
    """Context of the run's number format."""
    n_rows: int
    """Examples of the training set."""
    passes: Callable[[], Iterable[list[TrainerBatch]]]
    """Gives one pass over the training set."""
    label_smoothing: float = 0.0
    forward: Callable[..., Any] = field(init=False)
    """The model as the loop has wrapped it."""
    embedding_hooks: list[Callable[[Tensor, Any], Tensor]] = field(init=False, default_factory=list)
    """Functions that change the word embeddings in training."""
    _embeddings: nn.Module | None = field(init=False)
    _batch: TrainerBatch | None = field(init=False, default=None)
    _given: Tensor | None = field(init=False, default=None)
    _lookups: int = field(init=False, default=0)
    _counted: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Find the word embeddings."""
        self.forward = self.network
        self._embeddings = _word_embeddings(self.network)

    def take_over_words(self) -> Callable[[], None]:
        """Replace word embeddings where the model looks them up, until the function that is returned is called."""
        if self._embeddings is None:
            return lambda: None

        def hook(module: nn.Module, arguments: Any, found: Tensor) -> Tensor:  # no method: a copied model copies it not
            return self._look_up(found)

        return self._embeddings.register_forward_hook(hook).remove

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The layers, from the one next to the embeddings on; a decoder's after its encoder's."""
        return stack_modules(self.network)

    @property
    def regression(self) -> bool:
        """Whether the one output is a score."""
        return self.task is Task.REGRESSION

    @property
    def n_examples(self) -> int:
        """Predictions of the training set; where tokens have one each they are counted, in a pass."""
        if not self.task.per_token:
            return self.n_rows
        if not self._counted:
            self._counted = sum(batch.size for batches in self.passes() for batch in batches)
        return self._counted

    def batch(self, inputs: Mapping[str, Any]) -> TrainerBatch:
        """Make a batch of what the loop's data loader gives.

        Raises:
            ValueError: If it has no labels.
        """
        if self.label not in inputs:
            raise ValueError(f"a batch has {', '.join(inputs)}, but no {self.label}: methods need the labels")
        rest = {name: value for name, value in inputs.items() if name != self.label}
        labels = inputs[self.label]
        size = int((self._placed(labels) != IGNORED).sum()) if self.task.per_token else labels.shape[0]
        return TrainerBatch(rest, labels, size)

    def embed(self, batch: TrainerBatch) -> Tensor:
        """Word embeddings, (B, T, E).

        Raises:
            ValueError: If the model has none, or looks more than one sequence up.
        """
        self.check_embeddings()
        assert self._embeddings is not None
        embeddings: Tensor = self._embeddings(batch.inputs["input_ids"])
        return embeddings

    def check_embeddings(self) -> None:
        """Refuse methods on word embeddings where the model has none, or one table for encoder and decoder.

        Raises:
            ValueError: As said.
        """
        if self._embeddings is None:
            raise ValueError(f"{type(self.network).__name__} has no word embeddings, which the method perturbs")
        if getattr(getattr(self.network, "config", None), "is_encoder_decoder", False):
            raise ValueError(
                f"{type(self.network).__name__} is an encoder-decoder, which looks up words twice: methods that "
                "perturb word embeddings have no form on it"
            )

    def logits(self, batch: TrainerBatch, inputs_embeds: Tensor | None = None) -> Tensor:
        """(N, K) float32."""
        output = self._outputs(batch, inputs_embeds)
        return self._chosen(output, batch.labels).float()

    def loss(self, logits: Tensor, batch: TrainerBatch) -> Tensor:
        """() summed over the predictions."""
        return self._losses(logits, batch, "sum")

    def example_losses(self, logits: Tensor, batch: TrainerBatch) -> Tensor:
        """(N,)."""
        return self._losses(logits, batch, "none")

    def weight(self, batch: TrainerBatch) -> float:
        """1: a Trainer has one task."""
        return 1.0

    def divergence(self, logits: Tensor, other: Tensor) -> Tensor:
        """() summed over the predictions."""
        return divergence(logits, other, self.regression)

    @property
    def task_kinds(self) -> Sequence[TaskKind]:
        """The one task, which has no definition."""
        return [TaskKind(str(self.task), self.regression)]

    def task_kind(self, batch: TrainerBatch) -> TaskKind:
        """The one task."""
        return self.task_kinds[0]

    def training_batches(self) -> Iterable[list[TrainerBatch]]:
        """One pass over the training set, a list of micro-batches per optimizer step."""
        return self.passes()

    def check_loss(self, batch: TrainerBatch) -> None:
        """Compare the model's own loss with the one that is trained.

        Raises:
            ValueError: If they differ by more than rounding, or the labels are wrong.
        """
        with evaluating(self.network), torch.no_grad():
            logits = self.logits(batch)
            self._check_labels(logits, batch.labels)
            outputs = self.network(**batch.inputs, **{self.label: batch.labels})
            own = outputs.get("loss") if isinstance(outputs, Mapping) else None
            if own is None or own.ndim:
                return
            found = self._losses(logits, batch, "sum", smoothed=False) / batch.size
        if not torch.isclose(own.float(), found, rtol=2e-2, atol=1e-4, equal_nan=True):
            raise ValueError(
                f"the model's own loss of the first batch is {float(own):.4g}, but that of {self.task} is "
                f"{float(found):.4g}: methods need to compute the loss themselves: use a model whose loss is plain "
                "cross-entropy, or squared error, or give the right task="
            )

    def _outputs(self, batch: TrainerBatch, words: Tensor | None = None) -> Tensor:
        """The model's logits, as it returns them."""
        self._batch, self._given, self._lookups = batch, words, 0
        try:
            with self.autocast():
                outputs = self.forward(**batch.inputs)
            if (words is not None or self.embedding_hooks) and self._lookups != 1:
                raise ValueError(
                    f"{type(self.network).__name__} looks its word embeddings up {self._lookups} times in a pass: "
                    "methods that perturb word embeddings need one look-up"
                )
        finally:
            self._batch = self._given = None
        logits: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        return logits

    def _look_up(self, found: Tensor) -> Tensor:
        """Change the word embeddings of the pass under way; elsewhere, as in ``embed``, they stay."""
        if self._batch is None:
            return found
        self._lookups += 1
        words = found if self._given is None else self._given
        if self.network.training:
            for hook in self.embedding_hooks:
                words = hook(words, self._batch)
        return words

    def _chosen(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K) as they are; of (B, T, K) those of labelled tokens, (N, K)."""
        if not self.task.per_token:
            return logits
        if self.task is Task.CAUSAL:
            logits = logits[:, :-1]
        return logits[self._placed(labels) != IGNORED]

    def _placed(self, labels: Tensor) -> Tensor:
        """Labels (B, T) where the predictions for them stand: a language model's come one token earlier."""
        return labels[:, 1:] if self.task is Task.CAUSAL else labels

    def _check_labels(self, logits: Tensor, labels: Tensor) -> None:
        """Refuse labels that are no classes; those of tokens that count for nothing are no harm."""
        if self.regression or not labels.numel():
            return
        highest = logits.shape[-1] - 1
        wrong = (labels < 0) | (labels > highest)
        if self.task.per_token:
            wrong &= labels != IGNORED
        if labels.is_floating_point() or bool(wrong.any()):
            found = f"have the type {labels.dtype}" if labels.is_floating_point() else f"hold {int(labels[wrong][0])}"
            legal = f"whole numbers from 0 to {highest}"
            raise ValueError(f"{self.label} {found}: {self.task} with num_labels={highest + 1} needs {legal}")

    def _losses(self, logits: Tensor, batch: TrainerBatch, reduction: str, smoothed: bool = True) -> Tensor:
        labels = batch.labels
        if self.regression:
            return F.mse_loss(logits[:, 0].float(), labels.reshape(-1).float(), reduction=reduction)
        if self.task.per_token:
            labels = self._placed(labels)
            labels = labels[labels != IGNORED]
        if labels.device.type == "cpu":  # a look at a GPU's makes the host wait, and torch stops there by itself
            self._check_labels(logits, labels)
        smoothing = self.label_smoothing if smoothed else 0.0
        return F.cross_entropy(logits.float(), labels.reshape(-1), reduction=reduction, label_smoothing=smoothing)


def _word_embeddings(network: nn.Module) -> nn.Module | None:
    """The table of word embeddings, if there is one."""
    try:
        found = network.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) and hasattr(found, "weight") and found.weight.ndim == 2 else None
