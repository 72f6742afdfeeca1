"""The hooks of a method around a training loop, in the one order that every loop has: ours and those of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .composition import Composition
from .context import Accumulate, MethodContext
from .method import OptimizerSettings
from .param_index import ParamIndex, weight_decay_groups


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
        around_pass: Gets the plain pass; what it returns takes its place.
    """

    def __init__(
        self,
        method: Composition,
        context: MethodContext,
        backward: Callable[[Tensor], object],
        loss_scale: Callable[[], Tensor | None],
        before_pass: Callable[[], None] = lambda: None,
        around_pass: Callable[[Accumulate], Accumulate] = lambda plain: plain,
    ) -> None:
        self._method, self._context = method, context
        self._backward, self._loss_scale, self._before_pass = backward, loss_scale, before_pass
        self._pass = around_pass(self._accumulate)
        self._around = method.around(context, self._pass)
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
        return self._pass(batches, weight)

    def _begin(self, examples: int) -> None:
        self._context.examples = examples
        if (scale := self._loss_scale()) is not None:
            self._context.gradient_scale = scale

    def _accumulate(self, batches: Sequence[Any], weight: float = 1.0) -> Tensor:
        """Add these batches' share of the step's gradients; returns the sum of the task's losses."""
        context, model = self._context, self._context.model
        self._before_pass()
        total = torch.zeros((), dtype=torch.float32, device=context.streams.device)
        for batch in batches:
            logits = model.logits(batch)
            loss = model.loss(logits, batch)
            total += loss.detach()
            extra = self._method.extra_loss(context, batch, logits)
            objective = (loss if extra is None else loss + extra) / context.examples
            if (factor := weight * model.weight(batch)) != 1.0:
                objective = objective * factor
            self._backward(objective)
        return total
