"""A context in which a network evaluates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .lazy import torch


@contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    """Let all parts of a network evaluate inside; each has its own mode afterwards: frozen parts may have evaluated."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
