"""The teacher of SMART's proximal term: a network with a moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from ...evaluating import evaluating
from ...lazy import guard, torch


class MeanTeacher:
    """theta~ <- beta theta~ + (1 - beta) theta, from the weights as they are now.

    Args:
        named_parameters: Names and parameters; those that are not trained are left out.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
        self._parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.weights = {name: p.detach().clone() for name, p in self._parameters.items()}

    def follow(self, beta: float) -> None:
        """Update the average with the trained weights; beta in [0, 1]."""
        ends = [p.detach() for p in self._parameters.values()]
        torch._foreach_lerp_(list(self.weights.values()), ends, 1.0 - beta)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the teacher's weights into the network inside; graphs made outside stay valid."""
        own = {name: p.data for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            parameter.data = self.weights[name]
        try:
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = own[name]

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Load saved ``weights``, from any device.

        Raises:
            TypeError: If one is missing or no plain tensor; nothing has been changed then.
            ValueError: If one has another shape.
        """
        found = [guard.check_saved(name, "teacher", weights.get(name), own.shape) for name, own in self.weights.items()]
        for own, weight in zip(self.weights.values(), found, strict=True):
            own.copy_(weight)


@contextmanager
def predicting(network: torch.nn.Module) -> Iterator[None]:
    """Evaluate inside, without dropout, noise or graph; the network's modes come back."""
    with evaluating(network), torch.no_grad():
        yield
