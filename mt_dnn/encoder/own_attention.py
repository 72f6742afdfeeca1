"""Packed batches for families of transformers whose attention no function can be registered for: MPNet and RoFormer.

Their modules keep their parameters and get other forwards, which do with a packed batch what transformers' do with a
padded one; without a packed batch they are transformers' own. Legend: n_tokens real tokens, T tokens of the longest
example, H heads, d size of a head.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from module.dropout import DropoutStream
from mt_dnn.encoder.attention import packed_attention
from mt_dnn.encoder.batch import PackedBatch

OWN_ATTENTION = ("mpnet", "roformer")
"""Families that this file is for."""


def adapt(model: nn.Module) -> None:
    """Make a transformers model of such a family take packed batches; other models stay as they are."""
    config: Any = model.config
    known: Any = model
    if config.model_type == "mpnet":
        known.forward = partial(_mpnet, known)
        for layer in known.encoder.layer:
            layer.attention.attn.forward = partial(_mpnet_attention, layer.attention.attn)
    elif config.model_type == "roformer":
        known.encoder.forward = partial(_roformer_encoder, known.encoder)
        for layer in known.encoder.layer:
            layer.attention.self.forward = partial(_roformer_attention, layer.attention.self)


@dataclass(frozen=True, slots=True)
class _Call:
    """A packed batch, as MPNet's layers get it in the place of a padded batch's bias."""

    packed: PackedBatch
    stream: DropoutStream | None
    relative: Tensor
    """(1, H, T, T) by position of query and key."""


def _mpnet(
    self: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    *args: Any,
    packed: PackedBatch | None = None,
    dropout_stream: DropoutStream | None = None,
    **named: Any,
) -> Any:
    """MPNetModel.forward: its own hands no keywords on to the layers, and counts positions through the batch."""
    if packed is None:
        return type(self).forward(self, input_ids, attention_mask, position_ids, inputs_embeds, *args, **named)
    from transformers.modeling_outputs import BaseModelOutput

    hidden = self.embeddings(input_ids=input_ids, position_ids=position_ids, inputs_embeds=inputs_embeds)
    longest = hidden[:, :1].expand(1, packed.max_seqlen, -1)  # of it, only the size and the device are read
    call = _Call(packed, dropout_stream, self.encoder.compute_position_bias(longest))
    for layer in self.encoder.layer:
        hidden = layer(hidden, None, call)[0]
    return BaseModelOutput(last_hidden_state=hidden)


def _mpnet_attention(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, position_bias: Any = None, *args: Any, **named: Any
) -> Any:
    """MPNetSelfAttention.forward."""
    if not isinstance(position_bias, _Call):
        return type(self).forward(self, hidden_states, attention_mask, position_bias, *args, **named)
    q, k, v = (_by_head(layer(hidden_states), self.attention_head_size) for layer in (self.q, self.k, self.v))
    call, dropout = position_bias, self.dropout.p if self.training else 0.0
    out, _ = packed_attention(
        self, q, k, v, None, dropout, None, call.packed, call.stream, relative=call.relative
    )  # (1, n_tokens, H, d)
    return (self.o(out.flatten(2)),)


def _roformer_encoder(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **named: Any
) -> Any:
    """RoFormerEncoder.forward: its own counts positions through the batch."""
    packed = named.get("packed")
    if packed is None:
        return type(self).forward(self, hidden_states, attention_mask, *args, **named)
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    angles = F.embedding(packed.position_ids, self.embed_positions.weight)[None, None]  # (1, 1, n_tokens, d)
    for layer in self.layer:
        hidden_states = layer(hidden_states, None, angles, packed=packed, dropout_stream=named.get("dropout_stream"))[0]
    return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states)


def _roformer_attention(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    sinusoidal_pos: Tensor | None = None,
    *args: Any,
    packed: PackedBatch | None = None,
    dropout_stream: DropoutStream | None = None,
    **named: Any,
) -> Any:
    """RoFormerSelfAttention.forward."""
    if packed is None:
        return type(self).forward(self, hidden_states, attention_mask, sinusoidal_pos, *args, **named)
    layers = self.query, self.key, self.value
    q, k, v = (_by_head(layer(hidden_states), self.attention_head_size) for layer in layers)
    if self.rotary_value:
        q, k, v = self.apply_rotary_position_embeddings(sinusoidal_pos, q, k, v)
    else:
        q, k = self.apply_rotary_position_embeddings(sinusoidal_pos, q, k)
    dropout = self.dropout.p if self.training else 0.0
    out, _ = packed_attention(self, q, k, v, None, dropout, None, packed, dropout_stream)
    return out.flatten(2), None


def _by_head(states: Tensor, size: int) -> Tensor:
    """(1, n_tokens, H * d) -> (1, H, n_tokens, d)."""
    return torch.transpose(states.view(*states.shape[:-1], -1, size), 1, 2)
