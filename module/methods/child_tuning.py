"""Child-Tuning (Xu et al., EMNLP 2021, arXiv 2109.05687): gradients of a part of the weights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..checks import CheckedSettings, NonNegative, Range
from ..context import MethodContext
from ..lazy import guard, torch
from ..method import AnyMethod, FineTuningMethod
from ..param_index import ParamInfo

_RESERVE = Range(lambda value: 1e-4 <= value <= 0.9999 or value == 1.0, "a share in [1e-4, 0.9999], or 1,")
_TRACKING = ("pats", "matched_noise", "sage")  # methods whose sensitivities are of whole gradients


@dataclass(frozen=True, slots=True)
class ChildTuningSettings(CheckedSettings):
    """Settings of Child-Tuning."""

    variant: Literal["F", "D"] = "D"
    """F: another random part in every step. D: the part with the largest Fisher information, for the whole run."""
    reserve: Annotated[float, _RESERVE] = 0.3
    """p, in [1e-4, 0.9999] or 1: share of the entries that are trained. The authors search 0.2 to 0.4 for F, 0.1 to 0.3
    for D."""
    fisher_clipping: NonNegative = 1.0
    """Largest norm of one tensor's gradient in the Fisher information of D, as in the authors' code; 0: not clipped."""
    fisher_dropout: bool = True
    """Whether dropout is on while D gathers it, as in the authors' code."""


class ChildTuning(FineTuningMethod[ChildTuningSettings]):
    """F: ``g <- g M / p``, M ~ Bernoulli(p) per entry of every tensor. D: ``g <- g M`` in the encoder layers, M fixed.

    Masked entries keep their momentum and weight decay, as in the authors' code. Masks come after clipping.
    """

    name = "child_tuning"
    plain_pass = True
    title = "Child-Tuning"
    rank = 50

    def __init__(self, settings: ChildTuningSettings | None = None) -> None:
        super().__init__(settings)
        self._masks: dict[str, torch.Tensor] = {}  # D: name of a parameter -> bool, True where it is trained
        self._keep_whole = False

    def check_beside(self, others: Sequence[AnyMethod]) -> None:
        """Learn whether whole gradients are wanted beside the masked ones."""
        self._keep_whole = any(other.name in _TRACKING for other in others)

    def before_fit(self, context: MethodContext) -> None:
        """Gather the Fisher information over one pass and choose the entries (D).

        Raises:
            ValueError: If no encoder layer is trained.
        """
        if self.settings.variant == "F" or self.settings.reserve == 1.0:
            return
        fisher = self._fisher(context)
        bound = _quantile(list(fisher.values()), 1.0 - self.settings.reserve)
        self._masks = {name: values >= bound for name, values in fisher.items()}

    def _fisher(self, context: MethodContext) -> dict[str, torch.Tensor]:
        """Return the mean over batches of the squared initial gradients, per parameter of the encoder layers."""
        infos = [info for info in context.params if info.in_layer and info.parameter.requires_grad]
        if not infos:
            raise ValueError("Method child_tuning, variant D: no encoder layer is trained: use variant F")
        fisher = {info.name: torch.zeros_like(info.parameter) for info in infos}
        context.network.train(self.settings.fisher_dropout)
        count = 0
        for window in context.model.training_batches():
            context.network.zero_grad(set_to_none=True)
            context.accumulate(window)
            count += 1
            for info in infos:
                gradient = info.parameter.grad
                if gradient is None:
                    continue
                if context.gradient_scale is not None:
                    gradient = gradient / context.gradient_scale
                if self.settings.fisher_clipping > 0.0:
                    gradient = gradient * (self.settings.fisher_clipping / (gradient.norm() + 1e-6)).clamp(max=1.0)
                fisher[info.name].add_(gradient.square())
        context.network.zero_grad(set_to_none=True)
        return {name: values / count for name, values in fisher.items()}

    def after_backward(self, context: MethodContext) -> None:
        """Mask the gradients; methods that track sensitivities find whole ones as ``unmasked_grad``."""
        if self.settings.reserve == 1.0:
            return
        for info in context.params:
            gradient = info.parameter.grad
            if gradient is None or not (self.settings.variant == "F" or info.name in self._masks):
                continue
            if self._keep_whole:
                info.parameter.unmasked_grad = gradient.clone()  # type: ignore[attr-defined]
            gradient.mul_(self._factor(context, info, gradient))

    def _factor(self, context: MethodContext, info: ParamInfo, gradient: torch.Tensor) -> torch.Tensor:
        if self.settings.variant == "F":
            return context.stream(self.name).kept(gradient, self.settings.reserve)
        mask = guard.check_saved(info.name, "mask", self._masks[info.name], gradient.shape)
        self._masks[info.name] = mask.to(gradient.device)  # a resume loads it on the CPU
        return self._masks[info.name]

    def after_step(self, context: MethodContext) -> None:
        """Drop the whole gradients."""
        if self._keep_whole:
            for info in context.params:
                if hasattr(info.parameter, "unmasked_grad"):
                    del info.parameter.unmasked_grad

    def state_dict(self) -> dict[str, Any]:
        """Return the masks of D."""
        return {"masks": dict(self._masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of :meth:`state_dict`."""
        self._masks = dict(state["masks"])


def _quantile(parts: Sequence[torch.Tensor], share: float) -> torch.Tensor:
    """Return the quantile of all entries of several tensors, for a share in [0, 1]."""
    values = torch.cat([part.reshape(-1) for part in parts])
    place = min(round(share * values.numel()) + 1, values.numel())
    if torch.are_deterministic_algorithms_enabled():  # torch then refuses kthvalue on CUDA
        return values.sort().values[place - 1]
    return values.kthvalue(place).values
