"""Queries, keys, values and their attention as one operation on the CPU, in float32.

The biases are added where the products are laid out for attention, and the gradients of the three products' input are
summed in place. Legend: n_tokens real tokens, H heads, D hidden size.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from module.dropout import NO_DROPOUT
from mt_dnn.encoder.attention import PACKED
from mt_dnn.encoder.cpu_attention import attend_to_itself, by_one_pass
from mt_dnn.encoder.hooks import every_call_hooked
from mt_dnn.encoder.residual_norm import FAMILIES, is_plain_linear, weight_of


def fuse(model: nn.Module) -> None:
    """Make the attention of a transformers model's layers one operation where that is possible.

    The last layer, which may work on the first tokens alone, keeps its parts.
    """
    config: Any = model.config
    if config.model_type not in FAMILIES:
        return
    layers: Any = model.encoder
    for layer in layers.layer[:-1]:
        module = layer.attention.self
        module.forward = partial(_forward, module)


def _forward(self: Any, hidden_states: Tensor, *args: Any, **named: Any) -> Any:
    """(1, n_tokens, D) -> the same, and None in place of the probabilities."""
    packed, stream = named.get("packed"), named.get("dropout_stream")
    p = self.dropout.p if self.training else 0.0
    given = [*args, named.get("attention_mask"), named.get("cache"), named.get("past_key_values")]
    simple = all(value is None for value in given) and (p == 0.0 or stream is not None)
    if packed is None or packed.slots is None or not simple or not _takes_products(self, hidden_states):
        return type(self).forward(self, hidden_states, *args, **named)
    heads, layout = self.num_attention_heads, packed.slots
    draw = NO_DROPOUT if stream is None else stream.draw(layout.n_scores * heads, p)
    layers = [(weight_of(layer), layer.bias) for layer in (self.query, self.key, self.value)]
    return attend_to_itself(hidden_states[0], layers, layout, draw, heads, self.scaling)[None], None


def _takes_products(own: Any, hidden: Tensor) -> bool:
    """Whether the products are plain ones of float32 numbers, and their gradients are needed."""
    layers = own.query, own.key, own.value
    if own.config._attn_implementation != PACKED or not torch.is_grad_enabled():
        return False
    if every_call_hooked() or not all(map(is_plain_linear, layers)):
        return False
    tensors = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    trained = hidden.requires_grad or any(tensor.requires_grad for tensor in tensors)
    return trained and hidden.is_contiguous() and hidden.shape[0] == 1 and by_one_pass(hidden, *tensors)
