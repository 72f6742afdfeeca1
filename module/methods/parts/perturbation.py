"""Weights moved for a forward and backward pass, and put back exactly."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ...context import MethodContext
from ...param_index import Kind, ParamInfo
from ...resolution import check_resolution


@contextmanager
def moved(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Let weights be changed in place inside; afterwards they hold the bits they held, also after an exception.

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


def reference_weight(infos: Sequence[ParamInfo]) -> Tensor:
    """Return the tensor whose size noise is compared with: the first matrix of the encoder layers, else the first."""
    matrices = [info for info in infos if info.in_layer and info.kind == Kind.WEIGHT]
    return (matrices or list(infos))[0].parameter.detach()


def check_weight_noise(context: MethodContext, method: str, noise: float, infos: Sequence[ParamInfo]) -> None:
    """Refuse noise that the weights' number format rounds away, and warn where only the products' format does.

    Args:
        context: Of the run.
        method: Its name, for the message.
        noise: Typical size of the noise on one weight, at least 0.
        infos: What it is added to.

    Raises:
        LostNoise: As :func:`module.resolution.check_resolution`.
    """
    assert context.model is not None
    with context.model.autocast():
        check_resolution(f"{method}: noise on the weights", noise, reference_weight(infos))
