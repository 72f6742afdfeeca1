"""FreeLB (Zhu et al., ICLR 2020, arXiv 1909.11764): the mean gradient along an ascent of the word embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..context import Accumulate, MethodContext
from ..method import FineTuningMethod, Resource

if TYPE_CHECKING:
    from torch import Tensor

Passes = Literal["K", "K+1"]


@dataclass(frozen=True, slots=True)
class FreeLBSettings:
    """Settings of FreeLB. Distances are 2-norms over all tokens of an example, in the units of the word embeddings.

    Raises:
        ValueError: If a number is out of its range or a choice is unknown.
    """

    ascent_steps: int = 2
    """K, at least 1. The authors' scripts for RoBERTa-large: 2 or 3."""
    passes: Passes = "K"
    """Over how many passes the gradient is averaged: K, as the paper and its code for ALBERT (the last step is not
    taken); or K + 1, as its code for RoBERTa."""
    step_size: float = 0.1
    """alpha, at least 0: length of an ascent step, the authors' adversarial learning rate. Their scripts: 2.5e-2 to
    0.2, MNLI 0.1."""
    init_magnitude: float = 0.1
    """At least 0: the start is uniform in (-1, 1) times this over sqrt(L d), L tokens of size d. The authors' scripts:
    0.1 to 1, MNLI 0.1; the paper has the maximal norm in its place."""
    max_norm: float | None = 0.3
    """epsilon, above 0: largest norm after a step; null: no bound. The authors' scripts: 0.14 to 0.7, MNLI 0.3."""

    def __post_init__(self) -> None:
        """Check the ranges and choices."""
        if self.ascent_steps < 1:
            raise ValueError(f"Invalid ascent_steps: {self.ascent_steps}: an integer of at least 1 is needed")
        if self.passes not in get_args(Passes):
            raise ValueError(f"Invalid passes: {self.passes!r}: one of {', '.join(get_args(Passes))} is needed")
        for name in ("step_size", "init_magnitude"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"Invalid {name}: {getattr(self, name)}: a number of at least 0 is needed")
        if self.max_norm is not None and not 0.0 < self.max_norm < float("inf"):
            raise ValueError(f"Invalid max_norm: {self.max_norm}: a number above 0, or null, is needed")


class FreeLB(FineTuningMethod):
    r"""``g = (1/n) sum_t grad L(x + delta_t)``, ``delta_{t+1} = P(delta_t + alpha g_delta / |g_delta|)``.

    P scales an example's delta back to norm epsilon. Each micro-batch climbs on its own, every example by its own norm.
    All passes have the same dropout masks and noise: the random sources are set back. Extra losses of other methods are
    perturbed with it, and delta climbs them too.
    """

    name = "freelb"
    Settings = FreeLBSettings
    exclusive = frozenset({Resource.EMBEDDINGS})
    rank = 50  # inside the estimators that move weights: it runs at each of their points

    def __init__(self, settings: FreeLBSettings | None = None) -> None:
        super().__init__(settings)
        self._checked = False

    @property
    def needs_dense_gradients(self) -> bool:
        """No: the gradient it reads is delta's."""
        return False

    @property
    def divisible(self) -> bool:
        """Yes: every example climbs on its own."""
        return True

    def gradients(self, context: MethodContext, batches: Sequence[Any], inner: Accumulate) -> "Tensor":
        """Climb on each micro-batch.

        Returns:
            () the loss to log, averaged over the passes.
        """
        import torch

        if not batches:  # of a process that has no example of the step
            return inner(batches)
        return torch.stack([self._climb(context, batch, inner) for batch in batches]).sum()

    def _climb(self, context: MethodContext, batch: Any, inner: Accumulate) -> "Tensor":
        """All passes of a micro-batch."""
        import torch

        assert context.streams is not None
        settings: FreeLBSettings = self.settings
        n_passes = settings.ascent_steps + (settings.passes == "K+1")
        delta = self._start(context, batch)
        states = context.streams.state()
        losses = []
        for number in range(n_passes):
            if number > 0:
                assert delta.grad is not None
                delta = ascend(delta.detach(), delta.grad, batch, settings)
                context.streams.restore(states)
            delta.requires_grad_(number < n_passes - 1)
            losses.append(_perturbed(context, batch, delta, inner, 1.0 / n_passes))
        mean: Tensor = torch.stack(losses).mean()
        return mean

    def _start(self, context: MethodContext, batch: Any) -> "Tensor":
        """The first delta, drawn before the random sources are noted, which the passes go back to."""
        import torch

        assert context.model is not None
        settings: FreeLBSettings = self.settings
        with torch.no_grad():
            embeddings = context.model.embed(batch)  # (n_tokens, E) or (B, T, E)
        self._check(context, embeddings, batch.max_seqlen)
        if settings.init_magnitude == 0.0:
            return torch.zeros_like(embeddings)
        entries = batch.lengths.to(embeddings.dtype) * embeddings.shape[-1]  # (B,)
        uniform = 2.0 * context.pass_stream(self.name).uniform(embeddings).to(embeddings.dtype) - 1.0
        delta: Tensor = uniform * batch.to_tokens(settings.init_magnitude / entries.sqrt())[..., None]
        return delta

    def _check(self, context: MethodContext, embeddings: "Tensor", longest: int) -> None:
        """Compare the size of delta's entries in the longest example with the embeddings' resolution, once."""
        if self._checked:
            return
        from ..resolution import check_resolution

        assert context.model is not None
        norms = [norm for norm in (self.settings.step_size, self.settings.init_magnitude) if norm > 0.0]
        with context.model.autocast():
            size = min(norms, default=0.0) / (longest * embeddings.shape[-1]) ** 0.5
            check_resolution("freelb on the word embeddings", size, embeddings)
        self._checked = True


def _perturbed(context: MethodContext, batch: Any, delta: "Tensor", inner: Accumulate, weight: float) -> "Tensor":
    """One pass with delta added to the word embeddings."""
    assert context.model is not None

    def add(embeddings: "Tensor", _batch: Any) -> "Tensor":
        return embeddings + delta

    hooks = context.model.embedding_hooks
    hooks.append(add)
    try:
        return inner([batch], weight)
    finally:
        hooks.remove(add)


def ascend(delta: "Tensor", gradient: "Tensor", batch: Any, settings: FreeLBSettings) -> "Tensor":
    """Move delta by a step of each example's own gradient and scale it back into the ball.

    Args:
        delta: (n_tokens, E) or (B, T, E).
        gradient: Like delta. Its scale does not matter. An example whose gradient is 0 or not finite (an fp16 loss
            scale that was too large) stays where it is.
        batch: Says which token belongs to which example.
        settings: Length of the step and radius of the ball.
    """
    import torch

    norm = example_norms(gradient, batch)
    usable = (norm > 0.0) & norm.isfinite()
    factor = torch.where(usable, settings.step_size / norm, 0.0)
    step = (gradient * batch.to_tokens(factor)[..., None]).nan_to_num(nan=0.0)  # 0 * inf
    delta = delta + step
    if settings.max_norm is not None:
        shrink = (settings.max_norm / example_norms(delta, batch)).clamp(max=1.0)
        delta = delta * batch.to_tokens(shrink)[..., None]
    return delta


def example_norms(values: "Tensor", batch: Any) -> "Tensor":
    """2-norm over the tokens of each example: (n_tokens, E) or (B, T, E) -> (B,)."""
    norms: Tensor = batch.sum_of_examples(values.square().sum(dim=-1)).sqrt()
    return norms
