"""Attention over a packed batch: the real tokens of all examples as one sequence, each example seeing only itself.

Registered with transformers under the name ``PACKED``; the batch reaches it through the keyword arguments of the
model's forward. A call without a packed batch is plain scaled dot-product attention on a padded one.
Legend: B examples, T tokens of the longest, n_tokens real tokens, H heads, d size of a head.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from module.dropout import NO_DROPOUT, DropoutStream
from mt_dnn.encoder.batch import PackedBatch
from mt_dnn.encoder.cpu_attention import attend, attend_first, by_one_pass
from mt_dnn.encoder.score_pattern import ScorePattern
from mt_dnn.encoder.slot_layout import SlotLayout
from mt_dnn.encoder.varlen import varlen_attention

PACKED = "packed"


class _Unpack(torch.autograd.Function):
    """Tokens to slots.

    Padding slots hold an example's first token instead of zeros (one copy, no fill). Attention masks them as keys and
    drops them as queries, so their gradient is zero, and backward is a plain gather as well.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, slot_tokens: Tensor, token_slots: Tensor) -> Tensor:
        ctx.save_for_backward(token_slots)
        return tokens.index_select(0, slot_tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (token_slots,) = ctx.saved_tensors
        return grad.index_select(0, token_slots), None, None


class _Pack(torch.autograd.Function):
    """Slots to tokens; backward writes each slot at most once, so it needs no accumulation."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, token_slots: Tensor) -> Tensor:
        ctx.save_for_backward(token_slots)
        ctx.shape = slots.shape
        return slots.index_select(0, token_slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (token_slots,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy(0, token_slots, grad), None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: PackedBatch | None = None,
    dropout_stream: DropoutStream | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    relative: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention function in transformers' form.

    Args:
        module: the layer that calls; it says whether it is causal.
        query: (1, H, n_tokens, d), or (B, H, T, d) without a packed batch.
        key: like query, or of fewer heads, each for as many heads of the query as the next.
        value: like key.
        attention_mask: (B, 1, T, T) bool or None; only without a packed batch.
        dropout: of the attention probabilities; 0 when evaluating.
        scaling: of the scores; None is d ** -0.5.
        packed: where each token belongs.
        dropout_stream: the source of dropout's masks on the CPU; None is torch's own generator.
        sliding_window: a query sees keys that are nearer than this.
        softcap: bound of the scores.
        relative: (1, H, T, T) added to the scores, by position in the example.

    Returns:
        ((1, n_tokens, H, d) or (B, T, H, d), None).
    """
    pattern = ScorePattern.of(module, sliding_window, softcap, relative)
    key, value = (_for_each_head(x, query.shape[1]) for x in (key, value))
    if packed is None:
        return _padded(query, key, value, attention_mask, dropout, scaling, pattern), None
    plain = pattern.is_plain(packed.max_seqlen)
    without_padding = varlen_attention(query, key, value, dropout, scaling, packed) if plain else None
    if without_padding is not None:
        return without_padding, None
    heads, n_tokens, d = query.shape[1:]
    layout = _layout(packed)
    on_cpu = query.device.type == "cpu"
    # torch's kernels for the CPU are made for inference: training with them takes two to three times as long.
    by_hand = on_cpu and query.requires_grad and torch.is_grad_enabled()
    # Views: (1, H, n_tokens, d) is transformers' own transposition of (1, n_tokens, H, d).
    q, k, v = (x.transpose(1, 2).reshape(n_tokens, heads * d).contiguous() for x in (query, key, value))
    if plain and by_hand and by_one_pass(q, k, v) and (dropout == 0.0 or dropout_stream is not None):
        draw = dropout_stream.draw(layout.n_scores * heads, dropout) if dropout_stream else NO_DROPOUT
        out = attend(q, k, v, layout, draw, heads, d**-0.5 if scaling is None else scaling)
        return out.view(1, n_tokens, heads, d), None
    q, k, v = (_to_slots(x, layout) for x in (q, k, v))
    by_hand = by_hand or softcap is not None  # which torch's attention does not know
    masks = (
        _masks(layout, heads, q.dtype, dropout, dropout_stream) if by_hand and on_cpu else [None] * len(layout.groups)
    )
    outs = []
    for group, mask in zip(layout.groups, masks, strict=True):
        shape = (group.size, group.length, heads, d)
        q_g, k_g, v_g = (x[group.start : group.end].view(shape).transpose(1, 2) for x in (q, k, v))
        bias = _sum(None if group.key_bias is None else group.key_bias.to(q.dtype), pattern.bias(group.length, q))
        if by_hand:
            out = _attend(q_g, k_g, v_g, bias, dropout, scaling, mask, softcap)
        else:
            out = scaled_dot_product_attention(q_g, k_g, v_g, bias, dropout, scale=scaling)
        outs.append(out.transpose(1, 2).reshape(-1, heads * d))  # (size * length, H * d)
    slots = outs[0] if len(outs) == 1 else torch.cat(outs)
    return _to_tokens(slots, layout).view(1, n_tokens, heads, d), None


def _padded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None,
    dropout: float,
    scaling: float | None,
    pattern: ScorePattern,
) -> Tensor:
    """Attention of a padded batch: (B, H, T, d) -> (B, T, H, d); ``allowed`` (B, 1, T, T) holds the pattern's band."""
    mask = pattern.bias(q.shape[2], q) if allowed is None else allowed
    if pattern.softcap is None:
        out = scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling)
    else:
        if allowed is not None:
            mask = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, torch.finfo(q.dtype).min / 2)
        out = _attend(q, k, v, mask, dropout, scaling, None, pattern.softcap)
    return out.transpose(1, 2).contiguous()


def _for_each_head(states: Tensor, heads: int) -> Tensor:
    """Keys or values (B, H or fewer, T, d) -> (B, H, T, d)."""
    own = states.shape[1]
    return states if own == heads else states.repeat_interleave(heads // own, dim=1)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def first_token_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    packed: PackedBatch,
    dropout_stream: DropoutStream | None = None,
) -> Tensor:
    """Attention of each example's first token over its example.

    Args:
        query: (1, H, B, d), of the first tokens.
        key: (1, H, n_tokens, d).
        value: like key.
        dropout: see ``packed_attention``, like the rest.
        scaling: of the scores; None is d ** -0.5.
        packed: where each token belongs.
        dropout_stream: the source of dropout's masks on the CPU.

    Returns:
        (1, B, H, d).
    """
    without_padding = varlen_attention(query, key, value, dropout, scaling, packed)
    if without_padding is not None:
        return without_padding
    heads, _, d = key.shape[1:]
    layout, size = _layout(packed), query.shape[2]
    q, k, v = (x.transpose(1, 2).reshape(-1, heads * d) for x in (query, key, value))
    if by_one_pass(q, k, v) and (dropout == 0.0 or dropout_stream is not None):
        scale = d**-0.5 if scaling is None else scaling
        return attend_first(q, k, v, layout, dropout_stream, dropout, heads, scale).view(1, size, heads, d)
    k, v = (_to_slots(x, layout) for x in (k, v))
    by_example = query.transpose(1, 2).reshape(size, heads, 1, d)
    q = torch.empty_like(by_example).index_copy(0, layout.rows, by_example)  # by row of the rectangles
    stream = dropout_stream if query.device.type == "cpu" else None
    outs, row = [], 0
    for group in layout.groups:
        shape = (group.size, group.length, heads, d)
        k_g, v_g = (x[group.start : group.end].view(shape).transpose(1, 2) for x in (k, v))
        bias = None if group.key_bias is None else group.key_bias.to(q.dtype)
        mask = None
        if stream is not None and dropout > 0.0:
            mask = stream.factors(k.new_empty((group.size, heads, 1, group.length)), dropout)
        outs.append(_attend(q[row : row + group.size], k_g, v_g, bias, dropout, scaling, mask))
        row += group.size
    rows = outs[0] if len(outs) == 1 else torch.cat(outs)  # (B, H, 1, d)
    return rows.index_select(0, layout.rows).view(1, size, heads, d)


def _layout(packed: PackedBatch) -> SlotLayout:
    """The slots of a batch.

    Raises:
        ValueError: it was made without, for attention that goes without padding.
    """
    if packed.slots is None:
        raise ValueError(
            "the batch has no slots, and this attention needs them; compile encoder.model in place before "
            "Encoder.batch makes batches, or make them by pack with max_groups"
        )
    return packed.slots


def _masks(
    layout: SlotLayout, heads: int, dtype: torch.dtype, dropout: float, stream: DropoutStream | None
) -> list[Tensor | None]:
    """Dropout's factors for each rectangle, (size, H, T, T), as they lie one after the other in the stream."""
    if stream is None or dropout == 0.0:
        return [None] * len(layout.groups)
    flat = stream.factors(torch.empty(layout.n_scores * heads, dtype=dtype, device="cpu"), dropout)
    parts = torch.split(flat, [heads * group.size * group.length**2 for group in layout.groups])
    return [
        part.view(group.size, heads, group.length, group.length)
        for part, group in zip(parts, layout.groups, strict=True)
    ]


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    dropout: float,
    scaling: float | None,
    mask: Tensor | None,
    softcap: float | None = None,
) -> Tensor:
    """Softmax attention operation by operation: q (B, H, Q, d), k and v (B, H, T, d), bias that fits (B, H, Q, T).

    ``mask`` (B, H, Q, T) holds dropout's factors; None where torch's generator draws them.
    """
    scores = torch.matmul(q * (q.shape[-1] ** -0.5 if scaling is None else scaling), k.transpose(-1, -2))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    probabilities = torch.softmax(scores, dim=-1)  # (B, H, Q, T)
    if mask is not None:
        probabilities = probabilities * mask
    elif dropout > 0.0:
        probabilities = torch.dropout(probabilities, dropout, True)
    return torch.matmul(probabilities, v)


def _to_slots(tokens: Tensor, layout: SlotLayout) -> Tensor:
    """(n_tokens, H * d) -> (slots, H * d)."""
    if layout.is_identity:
        return tokens
    slots: Tensor = _Unpack.apply(tokens, layout.slot_tokens, layout.token_slots)  # type: ignore[no-untyped-call]
    return slots


def _to_tokens(slots: Tensor, layout: SlotLayout) -> Tensor:
    """(slots, H * d) -> (n_tokens, H * d)."""
    if layout.is_identity:
        return slots
    tokens: Tensor = _Pack.apply(slots, layout.token_slots)  # type: ignore[no-untyped-call]
    return tokens


def _mask(*args: Any, attention_mask: Tensor | None = None, **named: Any) -> Tensor | None:
    """Make the mask of a padded batch; a packed one comes without and has none: its tokens are told apart above."""
    from transformers.masking_utils import sdpa_mask

    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **named)


@cache
def register() -> None:
    """Make ``PACKED`` known to transformers: the attention function, and the mask of its padded calls."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _mask)
