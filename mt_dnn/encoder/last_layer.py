"""The last layer for the first tokens alone, which are all that a classifier reads.

Only keys and values are needed of every token. Queries, the projection behind attention, residuals, norms and the
feed-forward part are computed of each example's first token: B rows instead of n_tokens. Values and gradients are those
of the whole layer.
Legend: B examples, T tokens of the longest, n_tokens real tokens, H heads, d size of a head, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from mt_dnn.encoder.attention import PACKED, first_token_attention, packed_attention
from mt_dnn.encoder.hooks import every_call_hooked, hooked, sees_output

_Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Queries of the first tokens (R, Q, D), keys and values of all (R, K, D), dropout -> (R, Q, D)."""
_Layer = Callable[[Any, Tensor, Tensor, _Attend], Tensor]


@dataclass(slots=True)
class Countdown:
    """Calls of divisible layers that a forward pass has still to make; the last is for the first tokens alone."""

    left: int


def _bert(layer: Any, hidden: Tensor, first: Tensor, attend: _Attend) -> Tensor:
    own = layer.attention.self
    context = attend(own.query(first), own.key(hidden), own.value(hidden), own.dropout.p)
    attended = layer.attention.output(context, first)
    out: Tensor = layer.output(layer.intermediate(attended), attended)
    return out


def _distilbert(layer: Any, hidden: Tensor, first: Tensor, attend: _Attend) -> Tensor:
    own = layer.attention
    context = attend(own.q_lin(first), own.k_lin(hidden), own.v_lin(hidden), own.dropout.p)
    attended = layer.sa_layer_norm(own.out_lin(context) + first)
    out: Tensor = layer.output_layer_norm(layer.ffn(attended) + attended)
    return out


def _albert(layer: Any, hidden: Tensor, first: Tensor, attend: _Attend) -> Tensor:
    own = layer.attention
    context = attend(own.query(first), own.key(hidden), own.value(hidden), own.attention_dropout.p)
    attended = own.LayerNorm(first + own.output_dropout(own.dense(context)))
    out: Tensor = layer.full_layer_layer_norm(layer.ff_chunk(attended) + attended)
    return out


# Not in it: families whose layers get the positions of all tokens with each call (DeBERTa, MPNet, ModernBERT).
_LAYERS: dict[str, _Layer] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _bert),
    "distilbert": _distilbert,
    "albert": _albert,
}


class LastLayer:
    """The last layer of a transformers model, and whether it may work on the first tokens alone.

    The layer's own ``forward`` is replaced on this one object. Without a ``Countdown`` it does what it did.

    Args:
        model: of any family; one that cannot be divided keeps its last layer whole.
    """

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        self._around: list[nn.Module] = [model]
        self._stack: Any = None
        self._calls = 1
        if config.model_type not in _LAYERS or getattr(config, "is_decoder", False):
            return
        self._stack = model.transformer if config.model_type == "distilbert" else model.encoder
        self._around.append(self._stack)  # their outputs have fewer rows
        if config.model_type == "albert":
            self._around.extend(self._stack.albert_layer_groups)
            self._calls = config.num_hidden_layers * config.inner_group_num
        for layer in self._layers():
            layer.forward = partial(_forward, layer)  # unlike a method it can be pickled

    def countdown(self) -> Countdown | None:
        """Return what tells the layer to work on the first tokens alone; None where it must stay whole.

        It stays whole where a hook would not be called or would see fewer rows, and where parts of the layer are not
        those of transformers.
        """
        if self._stack is None or every_call_hooked() or any(sees_output(module) for module in self._around):
            return None
        return Countdown(self._calls) if all(_is_plain(layer) for layer in self._layers()) else None

    def _layers(self) -> list[Any]:
        """The layers that make the last call: ALBERT calls a few of them again and again."""
        groups = getattr(self._stack, "albert_layer_groups", None)
        return [self._stack.layer[-1]] if groups is None else [x for group in groups for x in group.albert_layers]


def _forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *args: Any,
    first_tokens: Countdown | None = None,
    **named: Any,
) -> Tensor:
    """The layer's forward: (R, K, D) -> the same, or the first tokens' alone, (1, B, D) packed and (B, 1, D) padded."""
    if first_tokens is not None:
        first_tokens.left -= 1
    if first_tokens is None or first_tokens.left > 0:
        whole: Tensor = type(self).forward(self, hidden_states, attention_mask, *args, **named)
        return whole
    packed, own = named.get("packed"), _attention(self)
    first = hidden_states[:, :1] if packed is None else hidden_states.index_select(1, packed.first_tokens)
    mask = None if attention_mask is None else attention_mask[:, :, :1]  # (B, 1, 1, T)

    def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        q, k, v = (x.view(*x.shape[:2], -1, own.attention_head_size).transpose(1, 2) for x in (query, key, value))
        rate = dropout if self.training else 0.0
        if packed is None:
            out, _ = packed_attention(own, q, k, v, mask, rate, own.scaling)
        else:
            out = first_token_attention(q, k, v, rate, own.scaling, packed, named.get("dropout_stream"))
        return out.flatten(2)

    return _LAYERS[own.config.model_type](self, hidden_states, first, attend)


def _attention(layer: Any) -> Any:
    """The module that makes queries, keys and values."""
    return getattr(layer.attention, "self", layer.attention)


def _is_plain(layer: Any) -> bool:
    """Whether a layer may be divided now: nothing looks into it, and what is passed over is transformers' own."""
    if getattr(layer.forward, "func", None) is not _forward:
        return False
    own = _attention(layer)
    known = all(type(module).__module__.startswith("transformers.models.") for module in (layer, layer.attention, own))
    replaced = any("forward" in vars(module) for module in (layer.attention, own))
    if not known or replaced or own.config._attn_implementation not in (PACKED, "sdpa"):
        return False
    return not sees_output(layer) and not any(hooked(module) for module in layer.modules() if module is not layer)
