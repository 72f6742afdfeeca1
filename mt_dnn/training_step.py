"""One optimizer step: micro-batches -> losses -> gradients -> clip -> method -> step -> method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from module.clipping import clip_gradients
from mt_dnn.assembly import Parts
from mt_dnn.batch import Batch
from mt_dnn.precision import Precision


class TrainingStep:
    """Turns the parts of a run once per call.

    Args:
        parts: From ``assemble``.
        precision: Of the forward passes.
        max_norm: Largest global gradient norm; 0 switches clipping off.
        device: Where the network is.
    """

    def __init__(self, parts: Parts, precision: Precision, max_norm: float, device: torch.device) -> None:
        self.parts, self.max_norm, self.device = parts, max_norm, device
        self.scaler = precision.grad_scaler()
        parts.context.accumulate = self.accumulate_all

    def __call__(self, batches: Sequence[Batch], multiplier: float) -> tuple[Tensor, Tensor | None]:
        """Do a step.

        Args:
            batches: Its micro-batches; the step's loss is the mean over all their examples.
            multiplier: Of every group's peak learning rate.

        Returns:
            The task's loss summed over the examples, and the gradient norm before clipping (None where it is off).
        """
        parts, context = self.parts, self.parts.context
        for group in parts.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
        parts.network.train()
        parts.optimizer.zero_grad(set_to_none=True)
        self._begin(batches)
        loss = parts.method.gradients(context, batches, self._accumulate)
        self.scaler.unscale_(parts.optimizer)
        norm = clip_gradients(parts.network.parameters(), self.max_norm) if self.max_norm > 0 else None
        parts.method.after_backward(context)
        self.scaler.step(parts.optimizer)
        self.scaler.update()
        parts.method.after_step(context)
        return loss, norm

    def accumulate_all(self, batches: Sequence[Batch], weight: float = 1.0) -> Tensor:
        """Add the gradients of the mean objective over these batches, outside a step."""
        self._begin(batches)
        return self._accumulate(batches, weight)

    def _begin(self, batches: Sequence[Batch]) -> None:
        self.parts.context.examples = sum(batch.size for batch in batches)
        if self.scaler.is_enabled():
            self.parts.context.gradient_scale = self.scaler.scale(torch.ones((), device=self.device))

    def _accumulate(self, batches: Sequence[Batch], weight: float = 1.0) -> Tensor:
        """Add these batches' share of the step's gradients; returns the sum of the task's losses."""
        parts, context = self.parts, self.parts.context
        total = torch.zeros((), device=self.device)
        for batch in batches:
            logits = parts.model.logits(batch)
            loss = parts.model.loss(logits, batch)
            total += loss.detach()
            extra = parts.method.extra_loss(context, batch, logits)
            objective = (loss if extra is None else loss + extra) / context.examples
            if weight != 1.0:
                objective = objective * weight
            self.scaler.scale(objective).backward()  # type: ignore[no-untyped-call]
        return total
