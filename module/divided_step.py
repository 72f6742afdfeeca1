"""A step whose examples the processes of a run divide: our own loop's and ``transformers.Trainer``'s."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from .gradient_sum import AllReduces, GradientSum


class Broadcasts(AllReduces, Protocol):
    """The processes of a run."""

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors, on any device, with the first process's."""


class DividedStep:
    """Makes the gradients of the processes' shares of a step those of the whole step.

    Args:
        ranks: The processes, more than one.
        network: In training, with the parameters that are trained.

    Attributes:
        kind: Of the step under way, the same on all processes; see ``GradientSum``.
    """

    kind: Hashable = None

    def __init__(self, ranks: Broadcasts, network: nn.Module) -> None:
        self._ranks = ranks
        self._named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self._sum = GradientSum(ranks, self._named)
        # Buffers that forward passes change (R4F's power iteration): processes make different numbers of them.
        state = network.state_dict()
        self._buffers = [buffer for name, buffer in network.named_buffers() if name in state]
        self._complete = False

    def complete(self) -> None:
        """Add the gradients up before the hook ``gradients`` is over; ``context.complete_gradients``."""
        device = self._named[0][1].device  # of the gradients that the loss travels with
        self._sum(torch.zeros((), dtype=torch.float32, device=device), self.kind)
        self._complete = True

    def check_incomplete(self) -> None:
        """Refuse a pass that adds to gradients which are added up already.

        Raises:
            RuntimeError: If they are.
        """
        if self._complete and any(parameter.grad is not None for _, parameter in self._named):
            raise RuntimeError("a method adds a pass to complete gradients: it must set them to None before")
        self._complete = False

    def finish(self, loss: Tensor) -> Tensor:
        """Give all processes the gradients and buffers of the whole step.

        Args:
            loss: () of this process's share.

        Returns:
            () the sum of their losses.
        """
        if self._complete:
            self._complete = False
            self._ranks.all_reduce(loss)
        else:
            loss = self._sum(loss, self.kind)
        self._ranks.broadcast(self._buffers)
        return loss
