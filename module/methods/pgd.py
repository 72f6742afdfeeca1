"""Perturbed gradient descent: Gaussian noise of one size on the weights while gradients are taken.

In layers drawn at random it is Orvieto et al.'s (2023) noise injection; from both sides, noise stability optimization
(NSO).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..checks import CheckedSettings, NonNegative, check_ranges
from ..context import Accumulate, MethodContext
from ..lazy import torch
from ..method import AnyMethod, FineTuningMethod, Resource
from ..param_index import ParamInfo, Role
from .parts.perturbation import check_weight_noise, moved, trainable

_ROLES = tuple(str(role) for role in Role)


@dataclass(frozen=True, slots=True)
class PGDSettings(CheckedSettings):
    """Settings of perturbed gradient descent."""

    sigma: NonNegative = 0.01
    """sigma, standard deviation of the noise, at least 0. NSO's code for BERT on text: 0.01."""
    where: Literal["all", "random_layer"] = "all"
    """Noise on all chosen parameters, or on one layer of them per step; embeddings, pooler and head count as layers."""
    roles: tuple[Literal["embeddings", "encoder", "pooler", "head"], ...] = ("embeddings", "encoder", "pooler", "head")
    """Parts of the network that get noise, each at most once, at least one."""
    two_point: bool = False
    """Whether the gradient is the mean of those at w + u and w - u, for the cost of a second pass (NSO)."""
    replay_dropout: bool = True
    """Whether the second pass of two_point has the dropout masks of the first. NSO's code draws new ones."""
    beside_pats: bool = False
    """Whether PATS, which adds noise of its own to the weights, may be in the same run."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self)
        if not self.roles or len(set(self.roles)) < len(self.roles) or not set(self.roles) <= set(_ROLES):
            raise ValueError(
                f"Invalid roles: {list(self.roles or ())}: different ones of {', '.join(_ROLES)} are needed"
            )


class PGD(FineTuningMethod[PGDSettings]):
    """The gradient at ``w + u`` moves ``w``, u from N(0, sigma^2) and new in every step.

    The noise is the same for all micro-batches of a step; the weights come back from copies before the optimizer
    steps.
    """

    name = "pgd"
    title = "PGD"
    exclusive = frozenset({Resource.WEIGHT_ESTIMATOR, Resource.FORWARD_WEIGHTS})
    rank = -50  # around the estimators that perturb embeddings: they see one noise on the weights
    needs_dense_gradients = False  # gradients are not looked at
    divisible = True  # the noise is the same in all processes

    def check_beside(self, others: Sequence[AnyMethod]) -> None:
        """Refuse a second source of noise on the weights unless it is asked for."""
        if any(other.name == "pats" for other in others) and not self.settings.beside_pats:
            raise ValueError(
                "Methods 'pgd' and 'pats' both add noise to the weights: set pgd.beside_pats to true if that is meant"
            )

    def setup(self, context: MethodContext) -> None:
        """Check that a chosen part is trained.

        Raises:
            ValueError: If none of the chosen parts is there and trained.
        """
        if not self._layers(context):
            raise ValueError(f"pgd.roles: nothing of {', '.join(self.settings.roles)} is trained: choose other parts")

    def gradients(self, context: MethodContext, batches: Sequence[Any], inner: Accumulate) -> torch.Tensor:
        """Take the gradient under noise.

        Returns:
            () the loss under noise, the mean of both passes if there are two.
        """
        settings = self.settings
        infos = self._chosen(context)
        check_weight_noise(context, self.name, lambda: settings.sigma, infos)
        weights = [info.parameter.detach() for info in infos]
        stream = context.stream(self.name)
        noise = [stream.normal(weight).mul_(settings.sigma).to(weight.dtype) for weight in weights]
        with moved(weights) as clean:
            torch._foreach_add_(weights, noise)
            if not settings.two_point:
                return inner(batches)
            states = context.streams.state()
            loss = inner(batches, 0.5)
            torch._foreach_copy_(weights, clean)
            torch._foreach_sub_(weights, noise)
            if settings.replay_dropout:
                context.streams.restore(states)
            return (loss + inner(batches, 0.5)) / 2

    def _chosen(self, context: MethodContext) -> list[ParamInfo]:
        """Return the parameters that this step perturbs."""
        layers = self._layers(context)
        if self.settings.where == "all":
            return [info for layer in layers for info in layer]
        # Drawn anew from (seed, step) on the CPU: a draw on the GPU would make the host wait.
        generator = context.rng(f"{self.name}/layer/{context.step}")
        return layers[int(torch.randint(len(layers), (), generator=generator, dtype=torch.int64, device="cpu"))]

    def _layers(self, context: MethodContext) -> list[list[ParamInfo]]:
        """Return the trained parameters of the chosen parts, by layer."""
        layers: dict[Hashable, list[ParamInfo]] = {}
        for info in trainable(context):
            if info.role in self.settings.roles:
                layers.setdefault((info.role, info.layer), []).append(info)
        return list(layers.values())
