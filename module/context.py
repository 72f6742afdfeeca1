"""The part of a run that methods see: the network to call, its parameters and its random streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .lazy import torch
from .resolution import check_resolution
from .seeds import stream_seed

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from .param_index import ParamIndex
    from .random_streams import RandomStream, RandomStreams


@dataclass(frozen=True, slots=True)
class DropoutRates:
    """Dropout probabilities of a network, each in [0, 1)."""

    hidden: float
    """Of embeddings and of the layers' outputs."""
    attention: float
    """Of the attention probabilities."""
    head: float
    """Before the pooler and before the task head."""
    answer: float = 0.0
    """Of the turns of a SAN head."""


@dataclass(frozen=True, slots=True)
class TaskKind:
    """The part of a task that methods may know."""

    name: str
    regression: bool
    """Whether the one output is a score."""
    adv_loss: str | None = None
    """MT-DNN's name of the distance for adversarial training; None: the task's definition has none."""
    head: str = ""
    """Beginning of the names of the parameters that are in its head alone; empty: every head is its."""


class Model(Protocol):
    """The network in training, as methods may call it. Legend: B examples, K classes, E size of a word embedding."""

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The encoder's layers, from the one next to the embeddings on."""

    @property
    def embedding_hooks(self) -> list[Callable[[Tensor, Any], Tensor]]:
        """Functions of word embeddings and batch, called in this order in training; each returns the embeddings to use.

        The embeddings are those before positions and norm, (n_tokens, E) or (B, T, E).
        """

    @property
    def n_examples(self) -> int:
        """Examples of the training sets of all tasks."""

    def embed(self, batch: Any) -> Tensor:
        """Word embeddings of a batch, unchanged: (n_tokens, E) packed, (B, T, E) padded."""

    def logits(self, batch: Any, inputs_embeds: Tensor | None = None) -> Tensor:
        """(B, K) float32, under the run's autocast; with other word embeddings if some are given."""

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """() sum of the task's loss over the batch's examples."""

    def example_losses(self, logits: Tensor, batch: Any) -> Tensor:
        """(B,) the task's loss of each example."""

    def weight(self, batch: Any) -> float:
        """Factor on the gradients of a batch, by its task."""

    def autocast(self) -> AbstractContextManager[object]:
        """Context of the run's number format, in which ``logits`` computes."""

    def divergence(self, logits: Tensor, other: Tensor) -> Tensor:
        """() sum over examples of the distance of two predictions.

        KL(p || q) + KL(q || p) of classes, the squared difference of scores (K = 1).
        """

    @property
    def task_kinds(self) -> Sequence[TaskKind]:
        """Of each task, the main one first."""

    def task_kind(self, batch: Any) -> TaskKind:
        """The task of a batch."""

    def training_batches(self) -> Iterable[list[Any]]:
        """One pass over the training sets, in an order that no epoch has: micro-batches, a list per optimizer step."""


class Accumulate(Protocol):
    """Adds the gradients of one pass to the parameters' ``grad``."""

    def __call__(self, batches: Sequence[Any], weight: float = 1.0) -> Tensor:
        """Forward and backward.

        Args:
            batches: Micro-batches of the step.
            weight: Factor on the gradients.

        Returns:
            () the task's loss summed over the examples, detached, without the weight.
        """


@dataclass(slots=True)
class MethodContext:
    """The part of a run that the hooks of a method may see."""

    network: nn.Module
    params: ParamIndex
    seed: int
    streams: RandomStreams
    """Random sources that move on with the steps."""
    model: Model
    """Forward passes and losses."""
    accumulate: Accumulate = field(init=False)
    """Gradients of the plain loss with the methods' extra terms, outside the hook ``gradients``.

    From ``before_fit`` on.
    """
    optimizer: Optimizer = field(init=False)
    """From ``before_fit`` on."""
    gradient_scale: Tensor | None = None
    """() factor on losses before backward (fp16); None: 1."""
    step: int = 0
    """Optimizer steps done."""
    total_steps: int = 0
    """Optimizer steps of the whole run."""
    epoch: int = 0
    """Epochs done."""
    total_epochs: int = 0
    """Epochs of the whole run."""
    examples: int = 0
    """Examples of the optimizer step under way, in all its micro-batches and all processes."""
    complete_gradients: Callable[[], None] = lambda: None
    """Adds up the gradients of all processes, for a hook ``gradients`` that looks at them.

    Each process of a data-parallel run has those of its own share until the hook is over; in one process nothing is
    done. A pass that follows must start without gradients.
    """
    pass_weight: float = 1.0
    """Factor on the gradients of the hook ``gradients`` under way, from the methods around it."""
    noised_pass: bool = False
    """Whether the forward pass under way is one that a method makes beside the plain one, to compare with it."""
    anchors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    checked: set[str] = field(default_factory=set)
    """Texts that :meth:`check_noise` has looked at."""

    def rng(self, name: str) -> torch.Generator:
        """Return a fresh CPU generator of the stream (seed, name), for noise that is drawn once."""
        return torch.Generator().manual_seed(stream_seed(self.seed, name))

    def stream(self, name: str) -> RandomStream:
        """Return the stream (seed, name) at its present position, for noise of every step; resume restores it.

        In a data-parallel run it is the same in all processes, and must be drawn from the same number of times: for
        noise on weights and masks of gradients, once per step.
        """
        return self.streams[name]

    def pass_stream(self, name: str) -> RandomStream:
        """Return the stream for noise of forward passes: each process of a data-parallel run has its own."""
        return self.streams.per_rank(name)

    def anchor(self, kind: str) -> dict[str, Tensor]:
        """Return copies of the pretrained parameters by name, one set for all who ask.

        Args:
            kind: ``pretrained``: as loaded, for methods that say so in ``anchors``. ``init``: as they are at the
                first call, after the noise of NoisyTune, say.
        """
        if kind not in self.anchors:
            self.anchors[kind] = {info.name: info.parameter.detach().clone() for info in self.params if info.pretrained}
        return self.anchors[kind]

    def check_noise(self, what: str, tensor: Tensor, sizes: Callable[[], Sequence[float]]) -> None:
        """Refuse noise that a tensor's number format would round away; only the first call with a text looks.

        Args:
            what: Name of the noise and of its tensor, for the message.
            tensor: The tensor that gets it.
            sizes: Gives the sizes of the noise; called when they are looked at, since that makes the host wait.

        Raises:
            LostNoise: As :func:`module.resolution.check_resolution`.
        """
        if what in self.checked:
            return
        with self.model.autocast():
            for size in sizes():
                check_resolution(what, size, tensor)
        self.checked.add(what)

    @contextmanager
    def noised(self) -> Iterator[None]:
        """Mark the forward passes inside as noised ones."""
        self.noised_pass = True
        try:
            yield
        finally:
            self.noised_pass = False
