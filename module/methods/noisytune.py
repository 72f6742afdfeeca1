"""NoisyTune (Wu et al., ACL 2022, arXiv 2202.12024): uniform noise on the pretrained weights, once, before training."""

from dataclasses import dataclass

from module.context import MethodContext
from module.method import FineTuningMethod


@dataclass(frozen=True, slots=True)
class NoisyTuneSettings:
    """Settings of NoisyTune.

    Raises:
        ValueError: If the noise scale is negative.
    """

    noise_scale: float = 0.15
    """lambda, at least 0: the noise is uniform in (-lambda/2, lambda/2) standard deviations of the tensor. The paper:
    0.15 on GLUE."""
    include_head: bool = False
    """Whether what is not pretrained (pooler and heads of our own) is perturbed too, as the paper's snippet would."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0.0 <= self.noise_scale < float("inf"):
            raise ValueError(f"Invalid noise_scale: {self.noise_scale}: a number of at least 0 is needed")


class NoisyTune(FineTuningMethod):
    r"""Equation 1: ``W += U(-lambda/2, lambda/2) * std(W)`` for each tensor W.

    ``std`` is torch's (unbiased, N - 1). Tensors of one entry have none and are left alone; constant tensors have 0.
    Each tensor draws from a stream of its own, so its noise does not depend on which others there are.
    """

    name = "noisytune"
    Settings = NoisyTuneSettings
    rank = -100  # before other methods look at the weights

    def setup(self, context: MethodContext) -> None:
        """Perturb the pretrained parameters."""
        import torch

        settings: NoisyTuneSettings = self.settings
        for info in context.params:
            weights = info.parameter.detach()
            if weights.numel() <= 1 or not (info.pretrained or settings.include_head):
                continue
            generator = context.rng(f"noisytune/{info.path}")
            uniform = torch.rand(weights.shape, generator=generator) - 0.5
            std = weights.std()
            weights.add_((uniform * settings.noise_scale).to(weights.device) * std)
