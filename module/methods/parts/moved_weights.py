"""A forward pass at other weights, whose gradients are those of the network's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ...lazy import torch


def step_along(
    weights: Sequence[torch.nn.Parameter],
    gradients: Sequence[torch.Tensor | None],
    size: float,
    guard: float | torch.Tensor,
) -> list[torch.Tensor | None]:
    """``w + size g / (|g| + guard)``, with the norm over all of g; a graph leads from each to its weight.

    Args:
        weights: Parameters.
        gradients: Theirs, in the same order; None: no step, and None in the result.
        size: 2-norm of the step.
        guard: Keeps the step finite where all of g is zero.
    """
    wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in gradients if g is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in wide]))
    scale = size / (norm + guard)
    return [None if g is None else w + (scale * g).to(w.dtype) for w, g in zip(weights, gradients, strict=True)]


@contextmanager
def in_their_place(
    network: torch.nn.Module, weights: Sequence[torch.nn.Parameter], moved: Sequence[torch.Tensor | None]
) -> Iterator[None]:
    """Let the modules of a network compute with other weights inside; shared ones are exchanged wherever they stand.

    Args:
        network: Its modules hold the weights.
        weights: Those to exchange.
        moved: By what, in the same order; None stays.
    """
    by_weight = {id(w): m for w, m in zip(weights, moved, strict=True) if m is not None}
    own = [
        (module._parameters, name, parameter)
        for module in (network.modules() if by_weight else ())
        for name, parameter in module._parameters.items()
        if id(parameter) in by_weight
    ]
    for place, name, parameter in own:
        place[name] = by_weight[id(parameter)]  # type: ignore[assignment]  # a tensor with a graph
    try:
        yield
    finally:
        for place, name, parameter in own:
            place[name] = parameter
