"""R3F and R4F (Aghajanyan et al., ICLR 2021, arXiv 2008.03156): predictions that are steady under tiny noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..checks import CheckedSettings, NonNegative
from ..context import MethodContext
from ..lazy import torch
from ..method import FineTuningMethod, Resource
from ..param_index import Kind, Role
from ..seeds import stream_seed


@dataclass(frozen=True, slots=True)
class R3FSettings(CheckedSettings):
    """Settings of R3F and R4F."""

    weight: NonNegative = 1.0
    """lambda, at least 0: weight of the distance of the two predictions. The authors' code: 1.0."""
    noise_scale: NonNegative = 1e-5
    """sigma, at least 0: standard deviation of normal noise, half the width of uniform noise, in the units of the word
    embeddings. The authors' code: 1e-5."""
    noise: Literal["normal", "uniform"] = "normal"
    """N(0, sigma^2) or U(-sigma, sigma). The paper names both."""
    detach_embeddings: bool = True
    """Whether the noised pass leaves the embedding table without a gradient, as the authors' code does."""
    regression_term: Literal["squared_difference", "none"] = "squared_difference"
    """What a regression gets: the squared difference of the scores, as in HyPe's rerun; or nothing, as in the authors'
    code."""
    spectral_norm: bool = False
    """R4F: divide the weight of the task head by its largest singular value."""


class R3F(FineTuningMethod[R3FSettings]):
    r"""``L = CE(f(x)) + lambda (KL(p || q) + KL(q || p))``, p = f(x), q = f(x + z), x the word embeddings.

    Gradients flow into both predictions. The second pass draws its dropout apart, as the authors' code draws new masks:
    with dropout on and noise of 1e-5, nearly all of the distance is that of two dropout masks.
    """

    name = "r3f"
    title = "R3F"
    exclusive = frozenset({Resource.EMBEDDINGS})
    has_noised_pass = True

    def __init__(self, settings: R3FSettings | None = None) -> None:
        super().__init__(settings)
        self._normed: list[tuple[torch.nn.Module, str]] = []

    def setup(self, context: MethodContext) -> None:
        """Put the spectral norm on the head (R4F)."""
        if not self.settings.spectral_norm:
            return
        with context.streams.preserved():  # the start of its power iteration is drawn from torch's generators
            torch.manual_seed(stream_seed(context.seed, f"{self.name}/spectral_norm"))
            for info in context.params.select(Role.HEAD, Kind.WEIGHT):
                module, _, weight = info.name.rpartition(".")
                head = context.network.get_submodule(module)
                torch.nn.utils.parametrizations.spectral_norm(head, weight)
                self._normed.append((head, weight))

    def hand_over(self, context: MethodContext) -> None:
        """Leave the head's weights as the spectral norm makes them."""
        for module, weight in self._normed:
            module.eval()  # no more power iteration
            torch.nn.utils.parametrize.remove_parametrizations(module, weight)

    def extra_loss(self, context: MethodContext, batch: Any, logits: torch.Tensor) -> torch.Tensor | None:
        """Make the noised pass."""
        settings = self.settings
        model = context.model
        if settings.weight == 0.0 or (logits.shape[-1] == 1 and settings.regression_term == "none"):
            return None
        embeddings = model.embed(batch)
        context.check_noise("r3f.noise_scale on the word embeddings", embeddings, lambda: [settings.noise_scale])
        if settings.detach_embeddings:
            embeddings = embeddings.detach()
        noised = embeddings + self._noise(context, embeddings)
        with context.noised(), context.streams.apart(self.name):
            other = model.logits(batch, inputs_embeds=noised)
        return settings.weight * model.divergence(logits, other)

    def _noise(self, context: MethodContext, like: torch.Tensor) -> torch.Tensor:
        """The noise z, of a tensor's shape and dtype."""
        stream = context.pass_stream(self.name)
        z = stream.normal(like) if self.settings.noise == "normal" else 2.0 * stream.uniform(like) - 1.0
        return self.settings.noise_scale * z.to(like.dtype)
