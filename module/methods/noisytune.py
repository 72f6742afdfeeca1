"""NoisyTune (Wu et al., ACL 2022, arXiv 2202.12024): uniform noise on the pretrained weights, once, before training."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import CheckedSettings, NonNegative
from ..context import MethodContext
from ..method import FineTuningMethod
from ..uniform_noise import add_uniform_noise


@dataclass(frozen=True, slots=True)
class NoisyTuneSettings(CheckedSettings):
    """Settings of NoisyTune."""

    noise_scale: NonNegative = 0.15
    """lambda, at least 0: the noise is uniform in (-lambda/2, lambda/2) standard deviations of the tensor. The paper:
    0.15 on GLUE."""
    include_head: bool = False
    """Whether what is not pretrained (pooler and heads of our own) is perturbed too, as the paper's snippet would."""


class NoisyTune(FineTuningMethod[NoisyTuneSettings]):
    """:func:`module.uniform_noise.add_uniform_noise` on the weights as they were loaded."""

    name = "noisytune"
    title = "NoisyTune"
    plain_pass = True
    rank = -100  # before other methods look at the weights

    def setup(self, context: MethodContext) -> None:
        """Perturb the pretrained parameters."""
        add_uniform_noise(context.params, self.settings.noise_scale, context.seed, self.settings.include_head)
