"""Mixout (Lee et al., ICLR 2020, arXiv 1909.11299): weights replaced by their pretrained values at random."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..context import DropoutRates, MethodContext
from ..method import FineTuningMethod, Resource
from .controls import NoDropout

if TYPE_CHECKING:
    from torch import Tensor

    from ..param_index import ParamInfo


@dataclass(frozen=True, slots=True)
class MixoutSettings:
    """Settings of Mixout.

    Raises:
        ValueError: If a value is out of its range.
    """

    probability: float = 0.9
    """p, share of the weights replaced, in [0, 1). The paper, from memory: 0.7, 0.8 or 0.9."""
    granularity: Literal["column", "element"] = "column"
    """What a mask replaces: all weights of an input (the authors' code), or each weight for itself (mixconnect)."""
    official_grad_scale: bool = False
    """Whether the gradient lacks the factor 1 / (1 - p) that the rule has, as in the authors' code."""
    anchor: Literal["pretrained", "init"] = "pretrained"
    """What replaces them: the weights as loaded, or as they are when training starts (after NoisyTune's noise, say)."""
    include_head: bool = False
    """Whether our own pooler and head, whose anchor is their random start, are mixed too."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.probability < 1.0:
            raise ValueError(f"Invalid probability: {self.probability}: a number in [0, 1) is needed")
        for name, value, legal in (
            ("granularity", self.granularity, ("column", "element")),
            ("anchor", self.anchor, ("pretrained", "init")),
        ):
            if value not in legal:
                raise ValueError(f"Invalid {name}: {value!r}: one of {', '.join(legal)} is needed")


class Mixout(FineTuningMethod):
    """``W_eff = (M W + (1 - M) W0 - p W0) / (1 - p)``, M from Bernoulli(1 - p), anew in every training forward pass.

    On the weights of all linear layers of the encoder, not on biases, embeddings and norms. Dropout is off.
    """

    name = "mixout"
    Settings = MixoutSettings
    exclusive = frozenset({Resource.LINEAR_LAYERS, Resource.FORWARD_WEIGHTS})
    control = "no_dropout"

    @property
    def anchors(self) -> frozenset[str]:
        """The one of the settings."""
        return frozenset({self.settings.anchor})

    def configure(self, rates: DropoutRates) -> DropoutRates:
        """Switch dropout off, as the authors' code does."""
        return NoDropout().configure(rates)

    def setup(self, context: MethodContext) -> None:
        """Put a mixing layer in the place of each linear one.

        Raises:
            ValueError: If there is none.
        """
        from torch import nn

        from .parts.mixout_linear import MixoutLinear

        settings: MixoutSettings = self.settings
        infos = {id(info.parameter): info for info in context.params}
        replaced = 0
        for module in list(context.network.modules()):
            for name, child in module.named_children():
                if type(child) is not nn.Linear:
                    continue
                info = infos[id(child.weight)]
                if not (info.pretrained or settings.include_head):
                    continue
                mixing = MixoutLinear(
                    child,
                    self._anchor_of(context, info),
                    settings.probability,
                    settings.granularity,
                    settings.official_grad_scale,
                    context.pass_stream(self.name),
                )
                setattr(module, name, mixing)
                replaced += 1
        if not replaced:
            raise ValueError("mixout finds no nn.Linear in the encoder: use another method for it")

    def _anchor_of(self, context: MethodContext, info: "ParamInfo") -> "Tensor":
        if info.pretrained:
            return context.anchor(self.settings.anchor)[info.name]
        return info.parameter.detach().clone()
