"""SAM and ASAM (Foret et al., ICLR 2021, arXiv 2010.01412; Kwon et al., ICML 2021, arXiv 2102.11600).

The gradient of a step is taken where the loss is highest nearby.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..checks import CheckedSettings, NonNegative, check_ranges
from ..clipping import gradient_values
from ..context import Accumulate, MethodContext
from ..lazy import torch
from ..method import FineTuningMethod, Resource
from ..param_index import ParamInfo
from .parts.perturbation import check_weight_noise, moved, reference_weight, trainable

_RHO = {False: 0.05, True: 0.5}
_TINY = 1e-12  # added to the gradient's norm, which may be 0


@dataclass(frozen=True, slots=True)
class SAMSettings(CheckedSettings):
    """Settings of SAM and ASAM.

    ``rho`` depends on ``adaptive`` and is filled in when left out.
    """

    adaptive: bool = False
    """Whether distances are measured relative to the weights (ASAM)."""
    rho: NonNegative | None = None
    """rho, radius of the neighbourhood, at least 0; without a unit if adaptive. Default 0.05, ASAM's 0.5."""
    eta: NonNegative = 0.01
    """eta, at least 0: added to the weights' size where distances are relative to it (ASAM). ASAM's authors: 0.01."""
    replay_dropout: bool = True
    """Whether the second pass has the dropout masks and noise of the first, so that it differs by the weights alone."""

    def __post_init__(self) -> None:
        """Fill in rho and check the ranges."""
        if self.rho is None:
            object.__setattr__(self, "rho", _RHO[self.adaptive])
        check_ranges(self)

    @property
    def radius(self) -> float:
        """Rho as a plain number."""
        assert self.rho is not None
        return self.rho


class SAM(FineTuningMethod[SAMSettings]):
    r"""The gradient at ``w + e`` moves ``w``, with the norm over all trained parameters together.

    SAM: ``e = rho g / |g|``. ASAM: ``e = rho T^2 g / |T g|`` with ``T = |w| + eta`` for parameters named
    ``weight`` (layer norms' too, as the authors' code) and 1 for biases.

    Both passes see all micro-batches of the step; the weights come back from copies. Where the first gradient is not
    finite there is no direction: e is NaN, so the second gradient is too, and optimizer or loss scaler refuse the step.
    """

    name = "sam"
    title = "SAM"
    exclusive = frozenset({Resource.WEIGHT_ESTIMATOR})
    rank = -50  # around the estimators that perturb embeddings: they run at both points
    needs_dense_gradients = False  # rows without a gradient do not move
    divisible = True  # the ascent is along the gradient of all examples

    def gradients(self, context: MethodContext, batches: Sequence[Any], inner: Accumulate) -> torch.Tensor:
        """Take the first gradient, climb, take the second in its place.

        Returns:
            () the loss of the first pass, at the weights themselves.
        """
        settings = self.settings
        infos = trainable(context)
        check_weight_noise(context, self.name, lambda: _typical_step(infos, settings), infos)
        states = context.streams.state()
        loss = inner(batches)
        context.complete_gradients()
        with moved([info.parameter for info in infos]):
            climb([info for info in infos if info.parameter.grad is not None], settings)
            for info in infos:
                info.parameter.grad = None
            if settings.replay_dropout:
                context.streams.restore(states)
            inner(batches)
        return loss


def _typical_step(infos: Sequence[ParamInfo], settings: SAMSettings) -> float:
    """Return the typical size of e on one weight."""
    entries = sum(info.parameter.numel() for info in infos)
    size = float(reference_weight(infos).abs().mean()) + settings.eta if settings.adaptive else 1.0
    return settings.radius / float(entries**0.5) * size


def climb(infos: Sequence[ParamInfo], settings: SAMSettings) -> None:
    """Add e to the weights; their gradients are used up.

    Args:
        infos: Parameters with a gradient, dense or row-sparse. Its scale does not matter.
        settings: Which e.
    """
    steps = [step for info in infos if (step := gradient_values(info.parameter)) is not None]
    _stretch(infos, steps, settings)
    norm = torch.nn.utils.get_total_norm(steps)
    factor = torch.where(norm.isfinite(), settings.radius / (norm + _TINY), torch.nan)
    _stretch(infos, steps, settings)
    torch._foreach_mul_(steps, factor)
    for info, step in zip(infos, steps, strict=True):
        rows = _rows(info.parameter)
        weights = info.parameter.detach()
        weights.add_(step) if rows is None else weights.index_add_(0, rows, step)


def _stretch(infos: Sequence[ParamInfo], steps: Sequence[torch.Tensor], settings: SAMSettings) -> None:
    """Multiply by T in place (ASAM)."""
    if not settings.adaptive:
        return
    for info, step in zip(infos, steps, strict=True):
        if info.is_weight:
            rows = _rows(info.parameter)
            weights = info.parameter.detach()
            step.mul_((weights if rows is None else weights[rows]).abs() + settings.eta)


def _rows(parameter: torch.Tensor) -> torch.Tensor | None:
    """Return the rows of a gradient; None: all."""
    assert parameter.grad is not None
    return parameter.grad.indices()[0] if parameter.grad.is_sparse else None
