"""NEFTune (Jain et al., ICLR 2024, arXiv 2310.05914): uniform noise on the word embeddings, in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checks import CheckedSettings, NonNegative
from ..context import MethodContext
from ..lazy import torch
from ..method import FineTuningMethod


@dataclass(frozen=True, slots=True)
class NEFTuneSettings(CheckedSettings):
    """Settings of NEFTune."""

    alpha: NonNegative = 5.0
    """alpha, at least 0: the noise is uniform in (-1, 1) alpha / sqrt(L E), L tokens of E dimensions. The authors use
    5, 10 and 15, for instruction tuning."""
    padded_length: bool = False
    """L is the longest example of the batch, as in the authors' README, instead of each example's own length."""


class NEFTune(FineTuningMethod[NEFTuneSettings]):
    """Each example's embeddings get noise whose expected norm does not depend on its length."""

    name = "neftune"
    title = "NEFTune"

    def setup(self, context: MethodContext) -> None:
        """Hook the embeddings."""
        if self.settings.alpha > 0.0:
            context.model.embedding_hooks.append(lambda embeddings, batch: self._perturb(context, embeddings, batch))

    def _perturb(self, context: MethodContext, embeddings: torch.Tensor, batch: Any) -> torch.Tensor:
        """Add noise to embeddings, (n_tokens, E) or (B, T, E), padding unchanged."""
        lengths = batch.lengths.to(embeddings.dtype)  # (B,)
        if self.settings.padded_length:
            lengths = lengths.new_full(lengths.shape, batch.max_seqlen)
        scale = batch.to_tokens(self.settings.alpha / (lengths * embeddings.shape[-1]).sqrt())  # (n_tokens,) or (B, T)
        noise = 2.0 * context.pass_stream(self.name).uniform(embeddings) - 1.0
        noisy: torch.Tensor = embeddings + scale.unsqueeze(-1) * noise
        return noisy
