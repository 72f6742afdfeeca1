"""A context in which a network evaluates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .lazy import torch


@contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    """Switch a network to evaluation inside; afterwards each module has its earlier mode."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
