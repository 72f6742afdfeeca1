"""A network as in evaluation for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .lazy import torch


@contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    """All parts of a network evaluate inside; each then has its own mode again, as a frozen part may have evaluated."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
