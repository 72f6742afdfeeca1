"""Activation checkpointing: the second forward pass of a layer draws what its first has drawn."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

from torch import nn

from ..context import MethodContext

_FUNCTION = "_gradient_checkpointing_func"  # of a module of transformers: calls a layer, drops its activations


def checkpoints_activations(network: nn.Module | None) -> bool:
    """Whether a network of transformers computes activations anew in backward."""
    return any(getattr(module, "gradient_checkpointing", False) for module in network.modules()) if network else False


def check_checkpointing(settings: Any) -> None:
    """Refuse settings of activation checkpointing under which draws cannot be repeated.

    Args:
        settings: Keyword arguments of ``torch.utils.checkpoint.checkpoint``.

    Raises:
        ValueError: If they cannot.
    """
    if settings.get("use_reentrant"):
        raise ValueError(
            "activation checkpointing has use_reentrant=True, where a layer's second pass draws other dropout than its "
            "first: use_reentrant=False, the default, is needed"
        )
    if "context_fn" in settings:
        raise ValueError(
            "activation checkpointing has a context_fn of yours, but the methods need it to repeat draws: leave it out"
        )


def replay_draws(context: MethodContext) -> None:
    """Let a network that checkpoints its activations draw the same in both passes: dropout, and the methods' streams.

    torch by itself restores its own generators alone.

    Args:
        context: Of the run, with its streams.

    Raises:
        ValueError: As :func:`check_checkpointing`.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _Again(context)

    for module in context.network.modules():
        if getattr(module, "gradient_checkpointing", False) and isinstance(
            call := vars(module).get(_FUNCTION), partial
        ):
            check_checkpointing(call.keywords)
            setattr(module, _FUNCTION, partial(call, use_reentrant=False, context_fn=contexts))


class _Again:
    """Context of a second pass: all draws as they were when this was made; entered as often as backward asks."""

    def __init__(self, context: MethodContext) -> None:
        self._context, self._stack = context, ExitStack()
        self._replay, self._noised = context.streams.replay(), context.noised_pass

    def __enter__(self) -> None:
        context = self._context
        self._stack.enter_context(self._replay)
        self._stack.callback(setattr, context, "noised_pass", context.noised_pass)
        context.noised_pass = self._noised

    def __exit__(self, *error: object) -> None:
        self._stack.close()
