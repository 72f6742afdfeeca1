"""R3F and R4F (Aghajanyan et al., ICLR 2021, arXiv 2008.03156): predictions shall not move under tiny noise."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..context import MethodContext
from ..method import FineTuningMethod, Resource
from ..param_index import Kind, Role
from ..seeds import stream_seed

if TYPE_CHECKING:
    from torch import Tensor

    from ..random_streams import RandomStream

Noise = Literal["normal", "uniform"]
RegressionTerm = Literal["squared_difference", "none"]


@dataclass(frozen=True, slots=True)
class R3FSettings:
    """Settings of R3F and R4F.

    Raises:
        ValueError: If a number is out of its range or a choice is unknown.
    """

    weight: float = 1.0
    """lambda, at least 0: weight of the distance of the two predictions. The authors' code: 1.0."""
    noise_scale: float = 1e-5
    """sigma, at least 0: standard deviation of normal noise, half the width of uniform noise, in the units of the word
    embeddings. The authors' code: 1e-5."""
    noise: Noise = "normal"
    """N(0, sigma^2) or U(-sigma, sigma). The paper names both."""
    detach_embeddings: bool = True
    """Whether the noised pass leaves the embedding table without a gradient, as the authors' code does."""
    regression_term: RegressionTerm = "squared_difference"
    """What a regression gets: the squared difference of the scores, as in HyPe's rerun; or nothing, as in the authors'
    code."""
    spectral_norm: bool = False
    """R4F: divide the weight of the task head by its largest singular value."""

    def __post_init__(self) -> None:
        """Check the ranges and choices."""
        for name in ("weight", "noise_scale"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"Invalid {name}: {getattr(self, name)}: a number of at least 0 is needed")
        for name, legal in (("noise", Noise), ("regression_term", RegressionTerm)):
            value, choices = getattr(self, name), get_args(legal)
            if value not in choices:
                raise ValueError(f"Invalid {name}: {value!r}: one of {', '.join(choices)} is needed")


class R3F(FineTuningMethod):
    r"""``L = CE(f(x)) + lambda (KL(p || q) + KL(q || p))``, p = f(x), q = f(x + z), x the word embeddings.

    Gradients flow into both predictions. The second pass draws its dropout apart, as the authors' code draws new masks:
    with dropout on and noise of 1e-5, nearly all of the distance is that of two dropout masks.
    """

    name = "r3f"
    Settings = R3FSettings
    exclusive = frozenset({Resource.EMBEDDINGS})
    has_noised_pass = True

    def __init__(self, settings: R3FSettings | None = None) -> None:
        super().__init__(settings)
        self._checked = False

    def setup(self, context: MethodContext) -> None:
        """Put the spectral norm on the head (R4F)."""
        if not self.settings.spectral_norm:
            return
        import torch
        from torch.nn.utils.parametrizations import spectral_norm

        assert context.streams is not None
        with context.streams.aside():  # the start of its power iteration is drawn from torch's generators
            torch.manual_seed(stream_seed(context.seed, f"{self.name}/spectral_norm"))
            for info in context.params.select(Role.HEAD, Kind.WEIGHT):
                module, _, weight = info.name.rpartition(".")
                spectral_norm(context.network.get_submodule(module), weight)

    def extra_loss(self, context: MethodContext, batch: Any, logits: "Tensor") -> "Tensor | None":
        """Make the noised pass."""
        assert context.model is not None
        assert context.streams is not None
        settings: R3FSettings = self.settings
        model = context.model
        if settings.weight == 0.0 or (model.regression and settings.regression_term == "none"):
            return None
        embeddings = model.embed(batch)
        self._check(context, embeddings)
        if settings.detach_embeddings:
            embeddings = embeddings.detach()
        noised = embeddings + draw(context.pass_stream(self.name), embeddings, settings)
        with context.noised(), context.streams.apart(self.name):
            other = model.logits(batch, inputs_embeds=noised)
        return settings.weight * model.divergence(logits, other)

    def _check(self, context: MethodContext, embeddings: "Tensor") -> None:
        """Compare the noise with the resolution of the embeddings, once."""
        if self._checked:
            return
        from ..resolution import check_resolution

        assert context.model is not None
        with context.model.autocast():
            check_resolution("r3f.noise_scale on the word embeddings", self.settings.noise_scale, embeddings)
        self._checked = True


def draw(stream: "RandomStream", like: "Tensor", settings: R3FSettings) -> "Tensor":
    """Return the noise z of a tensor's shape and dtype."""
    z = stream.normal(like) if settings.noise == "normal" else 2.0 * stream.uniform(like) - 1.0
    return settings.noise_scale * z.to(like.dtype)
