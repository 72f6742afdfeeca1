"""The hooks of a method around a training loop, in the one order that every loop has: ours and those of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .composition import Composition
from .context import MethodContext
from .method import OptimizerSettings
from .param_index import ParamIndex, weight_decay_groups

OfBatch = Callable[[Any, float], Tensor]
"""A micro-batch and a factor on its gradients, which are added -> () the task's loss summed over its examples."""


def prepare(method: Composition, context: MethodContext, settings: OptimizerSettings) -> None:
    """Call the hooks between the loaded weights and the first step; the context has its optimizer afterwards.

    Args:
        method: Of the run.
        context: Its network has its pretrained weights and its dropout.
        settings: Of the optimizer, with the decay of weights that are neither biases nor norms'.

    Raises:
        ValueError: The method does not fit the network or the optimizer.
    """
    for kind in method.anchors & {"pretrained"}:
        context.anchor(kind)
    method.setup(context)
    context.params = ParamIndex(context.network.named_parameters())  # parameters may have come or gone
    groups = weight_decay_groups(context.params, settings.weight_decay)
    groups = method.param_groups(context, [{**group, "lr": settings.learning_rate} for group in groups])
    context.optimizer = method.make_optimizer(groups, settings)


class StepGradients:
    """Takes the gradients of one optimizer step: losses of micro-batches with the methods' terms, backward.

    Args:
        method: Of the run.
        context: Of the run; from here on it can ``accumulate``.
        backward: Adds the gradients of a loss, multiplied by the loss scale where there is one.
        loss_scale: Gives that scale, (); None: there is none.
        before_pass: Called before each pass over micro-batches.
        around_batch: Gets the function that adds the gradients of one micro-batch; what it returns is called instead.
    """

    def __init__(
        self,
        method: Composition,
        context: MethodContext,
        backward: Callable[[Tensor], object],
        loss_scale: Callable[[], Tensor | None],
        before_pass: Callable[[], None] = lambda: None,
        around_batch: Callable[[OfBatch], OfBatch] = lambda plain: plain,
    ) -> None:
        self._method, self._context = method, context
        self._backward, self._loss_scale, self._before_pass = backward, loss_scale, before_pass
        self._of_batch = around_batch(self._plain)
        self._around = method.around(context, self._accumulate)
        context.accumulate = self._alone

    def __call__(self, batches: Sequence[Any], examples: int) -> Tensor:
        """Add the gradients of a step.

        Args:
            batches: Its micro-batches, or this process's share of them.
            examples: Of the whole step; its loss is the mean over them.

        Returns:
            () the task's loss summed over the examples, or what the methods log in its place.
        """
        self._begin(examples)
        return self._around(batches)

    def _alone(self, batches: Sequence[Any], weight: float = 1.0) -> Tensor:
        """Add the gradients of the mean objective over these batches, outside a step, in this process alone."""
        self._begin(sum(batch.size for batch in batches))
        return self._accumulate(batches, weight)

    def _begin(self, examples: int) -> None:
        self._context.examples = examples
        if (scale := self._loss_scale()) is not None:
            self._context.gradient_scale = scale

    def _accumulate(self, batches: Sequence[Any], weight: float = 1.0) -> Tensor:
        """Add these batches' share of the step's gradients; returns the sum of the task's losses."""
        self._before_pass()
        total = torch.zeros((), dtype=torch.float32, device=self._context.streams.device)
        for batch in batches:
            total += self._of_batch(batch, weight)
        return total

    def _plain(self, batch: Any, weight: float) -> Tensor:
        """Add the gradients of one micro-batch; returns the task's loss."""
        context, model = self._context, self._context.model
        logits = model.logits(batch)
        loss = model.loss(logits, batch)
        extra = self._method.extra_loss(context, batch, logits)
        objective = (loss if extra is None else loss + extra) / context.examples
        if weight != 1.0:
            objective = objective * weight
        self._backward(objective)
        return loss.detach()
