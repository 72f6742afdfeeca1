"""Mixout (Lee et al., ICLR 2020, arXiv 1909.11299): weights replaced by their pretrained values at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..checks import CheckedSettings, ShareBelow1
from ..context import DropoutRates, MethodContext
from ..lazy import torch
from ..method import FineTuningMethod, Resource
from ..param_index import ParamInfo
from .controls import NoDropout


@dataclass(frozen=True, slots=True)
class MixoutSettings(CheckedSettings):
    """Settings of Mixout."""

    probability: ShareBelow1 = 0.9
    """p, share of the weights replaced, in [0, 1). The paper, from memory: 0.7, 0.8 or 0.9."""
    granularity: Literal["column", "element"] = "column"
    """What a mask replaces: all weights of an input (the authors' code), or each weight for itself (mixconnect)."""
    official_grad_scale: bool = False
    """Whether the gradient lacks the factor 1 / (1 - p) that the rule has, as in the authors' code."""
    anchor: Literal["pretrained", "init"] = "pretrained"
    """What replaces them: the weights as loaded, or as they are when training starts (after NoisyTune's noise, say)."""
    include_head: bool = False
    """Whether our own pooler and head, whose anchor is their random start, are mixed too."""


class Mixout(FineTuningMethod[MixoutSettings]):
    """``W_eff = (M W + (1 - M) W0 - p W0) / (1 - p)``, M from Bernoulli(1 - p), anew in every training forward pass.

    On the weights of all linear layers of the encoder, not on biases, embeddings and norms. Dropout is off.
    """

    name = "mixout"
    title = "Mixout"
    exclusive = frozenset({Resource.LINEAR_LAYERS, Resource.FORWARD_WEIGHTS})
    control = "no_dropout"

    def __init__(self, settings: MixoutSettings | None = None) -> None:
        super().__init__(settings)
        self.anchors = frozenset({self.settings.anchor})

    def configure(self, rates: DropoutRates) -> DropoutRates:
        """Switch dropout off, as the authors' code does."""
        return NoDropout().configure(rates)

    def setup(self, context: MethodContext) -> None:
        """Replace each linear layer by a mixing one.

        Raises:
            ValueError: If there is none.
        """
        from .parts.mixout_linear import MixoutLinear

        settings = self.settings
        infos = {id(info.parameter): info for info in context.params}
        replaced = 0
        for path, module in list(context.network.named_modules()):
            for name, child in module.named_children():
                if type(child) is not torch.nn.Linear:
                    continue
                info = infos[id(child.weight)]
                tied = info.name != f"{path}.{name}.weight".removeprefix(".")  # to a table of word embeddings
                if tied or not (info.pretrained or settings.include_head):
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

    def hand_over(self, context: MethodContext) -> None:
        """Put plain linear layers back."""
        from .parts.mixout_linear import MixoutLinear

        for module in list(context.network.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, MixoutLinear):
                    setattr(module, name, child.plain())

    def _anchor_of(self, context: MethodContext, info: ParamInfo) -> torch.Tensor:
        if info.pretrained:
            return context.anchor(self.settings.anchor)[info.name]
        return info.parameter.detach().clone()
