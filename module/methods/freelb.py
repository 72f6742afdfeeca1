"""FreeLB (Zhu et al., ICLR 2020, arXiv 1909.11764): the mean gradient along an ascent of the word embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..checks import CheckedSettings, NonNegative, Range, at_least
from ..context import Accumulate, MethodContext
from ..lazy import torch
from ..method import FineTuningMethod, Resource

_BOUND = Range(lambda value: 0.0 < value < math.inf, "a number above 0, or null,")


@dataclass(frozen=True, slots=True)
class FreeLBSettings(CheckedSettings):
    """Settings of FreeLB. Distances are 2-norms over all tokens of an example, in the units of the word embeddings."""

    ascent_steps: Annotated[int, at_least(1, "an integer")] = 2
    """K, at least 1. The authors' scripts for RoBERTa-large: 2 or 3."""
    passes: Literal["K", "K+1"] = "K"
    """Over how many passes the gradient is averaged: K, as the paper and its code for ALBERT (the last step is not
    taken); or K + 1, as its code for RoBERTa."""
    step_size: NonNegative = 0.1
    """alpha, at least 0: length of an ascent step, the authors' adversarial learning rate. Their scripts: 2.5e-2 to
    0.2, MNLI 0.1."""
    init_magnitude: NonNegative = 0.1
    """At least 0: the start is uniform in (-1, 1) times this over sqrt(L d), L tokens of size d. The authors' scripts:
    0.1 to 1, MNLI 0.1; the paper has the maximal norm in its place."""
    max_norm: Annotated[float, _BOUND] | None = 0.3
    """epsilon, above 0: largest norm after a step; null: no bound. The authors' scripts: 0.14 to 0.7, MNLI 0.3."""


class FreeLB(FineTuningMethod[FreeLBSettings]):
    r"""``g = (1/n) sum_t grad L(x + delta_t)``, ``delta_{t+1} = P(delta_t + alpha g_delta / |g_delta|)``.

    P scales an example's delta back to norm epsilon. Each micro-batch climbs on its own, every example by its own norm.
    All passes have the same dropout masks and noise: the random sources are set back. Extra losses of other methods are
    perturbed with it, and delta climbs them too.
    """

    name = "freelb"
    title = "FreeLB"
    exclusive = frozenset({Resource.EMBEDDINGS})
    rank = 50  # inside the estimators that move weights: it runs at each of their points
    needs_dense_gradients = False  # the gradient it reads is delta's
    divisible = True  # every example climbs on its own

    def gradients(self, context: MethodContext, batches: Sequence[Any], inner: Accumulate) -> torch.Tensor:
        """Climb on each micro-batch.

        Returns:
            () the loss to log, averaged over the passes.
        """
        if not batches:  # of a process that has no example of the step
            return inner(batches)
        return torch.stack([self._climb(context, batch, inner) for batch in batches]).sum()

    def _climb(self, context: MethodContext, batch: Any, inner: Accumulate) -> torch.Tensor:
        """Make all passes of a micro-batch."""
        settings = self.settings
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
        mean: torch.Tensor = torch.stack(losses).mean()
        return mean

    def _start(self, context: MethodContext, batch: Any) -> torch.Tensor:
        """Draw the first delta, before the state of the random sources that the passes restore."""
        settings = self.settings
        with torch.no_grad():
            embeddings = context.model.embed(batch)  # (n_tokens, E) or (B, T, E)
        context.check_noise(
            "freelb on the word embeddings", embeddings, lambda: [_entry_size(settings, batch.max_seqlen, embeddings)]
        )
        if settings.init_magnitude == 0.0:
            return torch.zeros_like(embeddings)
        entries = batch.lengths.to(embeddings.dtype) * embeddings.shape[-1]  # (B,)
        uniform = 2.0 * context.pass_stream(self.name).uniform(embeddings).to(embeddings.dtype) - 1.0
        delta: torch.Tensor = uniform * batch.to_tokens(settings.init_magnitude / entries.sqrt())[..., None]
        return delta


def _entry_size(settings: FreeLBSettings, longest: int, embeddings: torch.Tensor) -> float:
    """Return the size of delta's entries in the longest example."""
    norms = [norm for norm in (settings.step_size, settings.init_magnitude) if norm > 0.0]
    return min(norms, default=0.0) / math.sqrt(longest * embeddings.shape[-1])


def _perturbed(
    context: MethodContext, batch: Any, delta: torch.Tensor, inner: Accumulate, weight: float
) -> torch.Tensor:
    """Make a pass with delta added to the word embeddings."""

    def add(embeddings: torch.Tensor, _batch: Any) -> torch.Tensor:
        return embeddings + delta

    hooks = context.model.embedding_hooks
    hooks.append(add)
    try:
        return inner([batch], weight)
    finally:
        hooks.remove(add)


def ascend(delta: torch.Tensor, gradient: torch.Tensor, batch: Any, settings: FreeLBSettings) -> torch.Tensor:
    """Move delta by a step of each example's own gradient and scale it back into the ball.

    Args:
        delta: (n_tokens, E) or (B, T, E).
        gradient: Like delta. Its scale does not matter. An example whose gradient is 0 or not finite (an fp16 loss
            scale that was too large) stays where it is.
        batch: Says which token belongs to which example.
        settings: Length of the step and radius of the ball.
    """
    norm = example_norms(gradient, batch)
    usable = (norm > 0.0) & norm.isfinite()
    factor = torch.where(usable, settings.step_size / norm, 0.0)
    step = (gradient * batch.to_tokens(factor)[..., None]).nan_to_num(nan=0.0)  # 0 * inf
    delta = delta + step
    if settings.max_norm is not None:
        shrink = (settings.max_norm / example_norms(delta, batch)).clamp(max=1.0)
        delta = delta * batch.to_tokens(shrink)[..., None]
    return delta


def example_norms(values: torch.Tensor, batch: Any) -> torch.Tensor:
    """2-norm over the tokens of each example: (n_tokens, E) or (B, T, E) -> (B,)."""
    norms: torch.Tensor = batch.sum_of_examples(values.square().sum(dim=-1)).sqrt()
    return norms
