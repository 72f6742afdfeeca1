"""Averages of the weights along a run, evaluated in their place: the base of EMA and SWA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from ...context import MethodContext
from ...lazy import guard, torch
from ...method import FineTuningMethod, Resource


class Averaged(Protocol):
    """Settings of an average."""

    @property
    def start_step(self) -> int:
        """Optimizer steps before the first that counts."""

    @property
    def start_epoch(self) -> int:
        """Epochs before the first step that counts."""


A = TypeVar("A", bound=Averaged)


class WeightAveraging(FineTuningMethod[A]):
    """``average += weight (theta - average)`` after steps; the first time ``average = theta``.

    Trained on are the raw weights. Evaluation, and the weights kept as the run's result, are the average once it has
    started; the run logs the raw weights' scores beside it.
    """

    exclusive = frozenset({Resource.EVALUATED_WEIGHTS})
    rank = 100  # after everything that changes the weights
    evaluates_other_weights = True
    reads_clipped_gradients = False
    plain_pass = True

    def __init__(self, settings: A | None = None) -> None:
        super().__init__(settings)
        self._count = 0
        self._average: dict[str, torch.Tensor] = {}

    def weight(self, count: int) -> float:
        """Weight of the next weights in the average, in [0, 1], after ``count`` >= 1 of them."""
        raise NotImplementedError

    def setup(self, context: MethodContext) -> None:
        """Check that the average starts within the run.

        Raises:
            ValueError: If it does not.
        """
        first, total = self._first(context), context.total_steps
        if total and first >= total:
            raise ValueError(
                f"Method {self.name} would start after {first} steps ({self.name}.start_step "
                f"{self.settings.start_step}, {self.name}.start_epoch {self.settings.start_epoch}), but the run has "
                f"{total} in {context.total_epochs} epochs: start earlier or train longer"
            )

    def _first(self, context: MethodContext) -> int:
        """Steps before the first that counts."""
        settings = self.settings
        steps_per_epoch = context.total_steps // max(context.total_epochs, 1)
        return max(settings.start_step, settings.start_epoch * steps_per_epoch)

    def counts(self, steps: int) -> bool:
        """Whether a step counts, from its number ``steps`` >= 0 after the first."""
        return True

    def after_step(self, context: MethodContext) -> None:
        """Take the new weights into the average."""
        since = context.step - self._first(context)
        if since < 0 or not self.counts(since):
            return
        trained = _trained(context)
        if not self._average:
            self._average = {name: theta.detach().clone() for name, theta in trained.items()}
        else:
            with torch.no_grad():
                averages = [self._average_of(name, theta) for name, theta in trained.items()]
                torch._foreach_lerp_(averages, list(trained.values()), self.weight(self._count))
        self._count += 1

    def _average_of(self, name: str, theta: torch.Tensor) -> torch.Tensor:
        average = guard.check_saved(name, "average", self._average.get(name), theta.shape)
        self._average[name] = average.to(theta.device)  # out of a checkpoint it comes on the CPU
        return self._average[name]

    @contextmanager
    def evaluation(self, context: MethodContext) -> Iterator[None]:
        """Swap the average with the raw weights, and back bit for bit."""
        self._swap(context)
        try:
            yield
        finally:
            self._swap(context)

    def _swap(self, context: MethodContext) -> None:
        if not self._average:
            return
        with torch.no_grad():
            for name, theta in _trained(context).items():
                average = self._average_of(name, theta)
                kept = theta.clone()
                theta.copy_(average)
                average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"count": self._count, "average": self._average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of :meth:`state_dict`."""
        self._count, self._average = state["count"], dict(state["average"])


def _trained(context: MethodContext) -> dict[str, torch.Tensor]:
    return {info.name: info.parameter for info in context.params if info.parameter.requires_grad}
