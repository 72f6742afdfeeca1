"""One optimizer step: learning rate -> losses of micro-batches -> gradients -> clip -> method -> step -> method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from module.clipping import clip_as_the_step, clip_gradients, clip_in_step, measures_itself
from module.divided_step import DividedStep
from module.driver import StepGradients
from mt_dnn.assembly import Parts
from mt_dnn.data_parallel import ONE_PROCESS, Ranks
from mt_dnn.encoder.batch import Batch
from mt_dnn.pass_graphs import PassGraphs


class TrainingStep:
    """Makes one optimizer step per call.

    Args:
        parts: From ``assemble``.
        max_norm: Largest global gradient norm; 0 switches clipping off.
        ranks: Processes that divide the examples of every step.
        schedule: Multiplier of every group's peak learning rate, from the number of steps made; None: always 1.
    """

    def __init__(
        self,
        parts: Parts,
        max_norm: float,
        ranks: Ranks = ONE_PROCESS,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        self.parts, self.max_norm, self.schedule = parts, max_norm, schedule
        self.scaler = parts.model.precision.grad_scaler()
        # Walking through the network takes longer than looking at all of it.
        self._modules, self._parameters = [*parts.network.modules()], [*parts.network.parameters()]
        self._step_measures = measures_itself(parts.optimizer, self._parameters)
        self._divided = DividedStep(ranks, parts.network) if ranks.size > 1 else None
        more: dict[str, Any] = {}
        if self._divided is not None:
            more["before_pass"] = self._divided.check_incomplete
            parts.context.complete_gradients = self._divided.complete
        if parts.graphs:
            more["around_pass"] = partial(PassGraphs, parts.network, parts.context)
        self._gradients = StepGradients(parts.method, parts.context, self._backward, self._loss_scale, **more)

    def __call__(
        self, batches: Sequence[Batch], *, examples: int | None = None, tasks: frozenset[str] = frozenset()
    ) -> tuple[Tensor, Tensor | None]:
        """Make a step.

        Args:
            batches: Its micro-batches, or this rank's share of them; the step's loss is the mean over all examples.
            examples: Of the step, on all ranks; default: those of the batches.
            tasks: Of the step, on all ranks: the heads that get gradients.

        Returns:
            The task's loss summed over the examples, and the gradient norm before clipping (None where it is off).
        """
        parts, context = self.parts, self.parts.context
        multiplier = 1.0 if self.schedule is None else self.schedule(context.step)
        for group in parts.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
        if not all(module.training for module in self._modules):  # setting it takes longer than looking
            parts.network.train()
        parts.optimizer.zero_grad(set_to_none=True)
        if self._divided is not None:
            self._divided.kind = tasks
        loss = self._gradients(batches, sum(batch.size for batch in batches) if examples is None else examples)
        if self._divided is not None:
            loss = self._divided.finish(loss)
        # This pass looks for infinities and writes all gradients; left to the step, torch's would write them as well.
        self.scaler.unscale_(parts.optimizer)
        norm = self._clip() if self.max_norm > 0 else None
        left = parts.optimizer.__dict__
        try:
            parts.method.after_backward(context)
            self.scaler.step(parts.optimizer)
            if "max_norm" in left:
                norm = torch.tensor(left["norm"], dtype=torch.float32, device=parts.streams.device)
        finally:
            for name in ("grad_scale", "max_norm", "norm"):
                left.pop(name, None)
        self.scaler.update()
        parts.method.after_step(context)
        return loss, norm

    def _clip(self) -> Tensor | None:
        """Clip the gradients, inside of the step where nobody else reads them; None: the step finds their norm."""
        optimizer: Any = self.parts.optimizer
        parameters = self._parameters
        if not getattr(optimizer, "takes_row_sparse", False):  # it is not this package's
            return clip_gradients(parameters, self.max_norm)
        step_measures = self._step_measures and not self.scaler.is_enabled()  # which may leave the step out
        if self.parts.method.reads_clipped_gradients or _hooked(optimizer):
            clip = clip_as_the_step if step_measures else clip_gradients
            return clip(parameters, self.max_norm)
        if not step_measures:
            return clip_in_step(optimizer, parameters, self.max_norm)
        optimizer.max_norm = self.max_norm
        return None

    def _backward(self, objective: Tensor) -> None:
        self.scaler.scale(objective).backward()  # type: ignore[no-untyped-call]

    def _loss_scale(self) -> Tensor | None:
        if not self.scaler.is_enabled():
            return None
        return self.scaler.scale(torch.ones((), dtype=torch.float32, device=self.parts.streams.device))


def _hooked(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a hook on an optimizer's steps may look at the gradients."""
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(own or _global_optimizer_pre_hooks or _global_optimizer_post_hooks)
