"""HyPe (Yuan et al., ACL 2023, arXiv 2212.08853): noise on the hidden states that enter each encoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..checks import CheckedSettings, NonNegative, WholeNumber, check_ranges
from ..context import DropoutRates, MethodContext
from ..lazy import torch
from ..method import AnyMethod, FineTuningMethod


@dataclass(frozen=True, slots=True)
class HyPeSettings(CheckedSettings):
    """Settings of HyPe."""

    noise_scale: NonNegative = 1e-5
    """sigma, at least 0: standard deviation of normal noise, bound of uniform noise. The authors search 1e-5, 1e-4."""
    distribution: Literal["normal", "uniform"] = "normal"
    """HyPe-N or HyPe-U."""
    centered: bool = True
    """Uniform noise in (-sigma, sigma) as in the paper; False: in (0, sigma) as the authors' code draws it."""
    first_layer: WholeNumber = 0
    """First layer whose input gets noise, from 0, which is next to the embeddings."""
    last_layer: int | None = None
    """Last such layer; None: the topmost."""
    passes: Literal["auto", "all", "noised"] = "auto"
    """Forward passes with noise: all, or those alone that another method makes under noise (R3F, SMART) to compare with
    the plain one; auto: the latter where there is such a method, as in the paper."""
    keep_dropout: bool = False
    """Leave the dropout of hidden states on, which the paper switches off."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self)
        if self.last_layer is not None and self.last_layer < self.first_layer:
            raise ValueError(
                f"Invalid last_layer: {self.last_layer}: at least first_layer ({self.first_layer}) is needed"
            )


class HyPe(FineTuningMethod[HyPeSettings]):
    """``h <- h + e`` at the input of the layers, e ~ N(0, sigma^2) or U(-sigma, sigma) per entry, in training alone."""

    name = "hype"
    title = "HyPe"
    control = "no_hidden_dropout"

    def __init__(self, settings: HyPeSettings | None = None) -> None:
        super().__init__(settings)
        self._noised_passes_only = self.settings.passes == "noised"
        self._hooks: list[Any] = []

    def check_beside(self, others: Sequence[AnyMethod]) -> None:
        """Learn whether another method compares passes; refuse PAC-tuning.

        Raises:
            ValueError: Beside PAC-tuning, or where ``passes`` asks for passes that nobody makes.
        """
        comparing = any(other.has_noised_pass for other in others)
        if any(other.name == "pac_tuning" for other in others):
            raise ValueError(
                "Methods 'hype' and 'pac_tuning' do not stand together: PAC-tuning's bound knows no noise but its own: "
                "use them in separate runs"
            )
        if self.settings.passes == "noised" and not comparing:
            raise ValueError("Invalid passes: 'noised': no method beside hype makes such passes: use auto or all")
        self._noised_passes_only = self.settings.passes == "noised" or (self.settings.passes == "auto" and comparing)

    def configure(self, rates: DropoutRates) -> DropoutRates:
        """Switch the dropout of hidden states and head off."""
        return rates if self.settings.keep_dropout else replace(rates, hidden=0.0, head=0.0, answer=0.0)

    def setup(self, context: MethodContext) -> None:
        """Hook the layers.

        Raises:
            ValueError: If the encoder has fewer layers.
        """
        layers, settings = list(context.model.layers), self.settings
        for name in ("first_layer", "last_layer"):
            if (value := getattr(settings, name)) is not None and value >= len(layers):
                raise ValueError(f"Invalid {name}: {value}: this encoder has the layers 0 to {len(layers) - 1}")
        if settings.noise_scale == 0.0:
            return
        for layer in layers[settings.first_layer : None if settings.last_layer is None else settings.last_layer + 1]:

            def hook(
                layer: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
            ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
                if not layer.training or (self._noised_passes_only and not context.noised_pass):
                    return None
                if arguments:
                    return (self._perturb(context, arguments[0]), *arguments[1:]), named
                return arguments, {**named, "hidden_states": self._perturb(context, named["hidden_states"])}

            self._hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    def hand_over(self, context: MethodContext) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _perturb(self, context: MethodContext, hidden: torch.Tensor) -> torch.Tensor:
        """Add noise to hidden states of any shape (..., D)."""
        settings, stream = self.settings, context.pass_stream(self.name)
        context.check_noise("method hype, hidden states", hidden, lambda: [settings.noise_scale])
        if settings.distribution == "normal":
            noise = stream.normal(hidden)
        else:
            noise = 2.0 * stream.uniform(hidden) - 1.0 if settings.centered else stream.uniform(hidden)
        noisy: torch.Tensor = hidden + (settings.noise_scale * noise).to(hidden.dtype)
        return noisy
