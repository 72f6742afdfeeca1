"""Weights moved for a forward and backward pass, and put back exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ...context import MethodContext
from ...lazy import torch
from ...param_index import Kind, ParamInfo


@contextmanager
def moved(weights: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Restore weights, which may be changed in place inside, bit for bit, also after an exception.

    They come back from copies: subtracting what was added would leave rounding errors that add up over the steps.

    Args:
        weights: At least one; parameters are changed through ``detach()``.

    Yields:
        The copies.
    """
    plain = [weight.detach() for weight in weights]
    copies = [weight.clone() for weight in plain]
    try:
        yield copies
    finally:
        torch._foreach_copy_(plain, copies)


def trainable(context: MethodContext) -> list[ParamInfo]:
    """Return the parameters that are trained, in the network's order."""
    return [info for info in context.params if info.parameter.requires_grad]


def reference_weight(infos: Sequence[ParamInfo]) -> torch.Tensor:
    """Return the tensor for comparing sizes with noise: the first matrix of the encoder layers, else the first."""
    matrices = [info for info in infos if info.in_layer and info.kind == Kind.WEIGHT]
    return (matrices or list(infos))[0].parameter.detach()


def check_weight_noise(
    context: MethodContext, method: str, noise: Callable[[], float], infos: Sequence[ParamInfo]
) -> None:
    """Refuse noise that the weights' number format rounds away, and warn where only the products' format does.

    Args:
        context: Of the run.
        method: Its name, for the message.
        noise: Gives the typical size of the noise on one weight, at least 0.
        infos: The weights that get it.

    Raises:
        LostNoise: As :func:`module.resolution.check_resolution`.
    """
    context.check_noise(f"{method}: noise on the weights", reference_weight(infos), lambda: [noise()])
