"""The input of the encoder's first layer: the output of the embeddings, behind positions, norm and dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...lazy import torch


class FirstLayer:
    """Keeps the hidden states that a layer got in training, and gives it others.

    Args:
        network: Around the layer; each of its calls is a pass.
        layer: The one next to the embeddings. Of its calls in a pass only the first counts: a shared one has more.
    """

    def __init__(self, network: torch.nn.Module, layer: torch.nn.Module) -> None:
        self._seen: torch.Tensor | None = None
        self._given: torch.Tensor | None = None
        self._waits = False
        self._hooks = [
            network.register_forward_pre_hook(self._begin),
            layer.register_forward_pre_hook(self._look, with_kwargs=True),
        ]

    def release(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def seen(self) -> torch.Tensor:
        """Return what the layer got in the newest pass in training, without a graph: (n_tokens, D) or (B, T, D)."""
        assert self._seen is not None
        return self._seen

    @contextmanager
    def given(self, hidden: torch.Tensor) -> Iterator[None]:
        """Give the layer these hidden states in the passes inside."""
        self._given = hidden
        try:
            yield
        finally:
            self._given = None

    def _begin(self, network: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        self._waits = True

    def _look(
        self, layer: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self._waits:
            return None
        self._waits = False
        own = arguments[0] if arguments else named["hidden_states"]
        if self._given is None:
            if layer.training and torch.is_grad_enabled():
                self._seen = own.detach()
            return None
        given = self._given.to(own.dtype)
        return ((given, *arguments[1:]), named) if arguments else (arguments, {**named, "hidden_states": given})
