"""Gradient checkpointing: layers keep their inputs alone, and compute themselves a second time in the backward pass.

The second time all random sources of the run stand where they stood the first time: dropout masks and the noise that
methods draw from the run's streams inside a layer are the same, and so are values and gradients. Hooks on the call of a
layer are outside, and called once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from module.random_streams import RandomStreams


def recompute(layers: Sequence[nn.Module], streams: RandomStreams) -> None:
    """Let layers compute themselves again in the backward pass.

    The last one is spared: its backward pass is the first, when nothing has been freed yet, so it would save nothing. A
    lone one may be called again and again (ALBERT's), and so is never divided (:mod:`mt_dnn.encoder.last_layer`).

    Args:
        layers: Of an encoder, in order, with all that methods put into them.
        streams: The random sources of the run.
    """
    for layer in layers[:-1] or layers:
        layer.forward = partial(_forward, layer, layer.forward, streams)


def _forward(self: nn.Module, inner: Callable[..., Any], streams: RandomStreams, *args: Any, **named: Any) -> Any:
    """The layer's forward, which does not keep what it computes while it is trained."""
    if not (self.training and torch.is_grad_enabled()):
        return inner(*args, **named)
    replay = streams.replay()  # which has torch's generators too
    return checkpoint(
        partial(inner, **named), *args,
        use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), replay),
    )  # fmt: skip
