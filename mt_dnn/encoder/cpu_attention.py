"""Attention of a packed batch on the CPU, in float32: rectangles of heads, torch's products, one pass for the rest.

Legend: B examples, n_tokens real tokens, H heads, d size of a head, D = H d, T slots of an example's rectangle.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd.function import once_differentiable

from module.dropout import NO_DROPOUT, Draw, DropoutStream
from module.kernels.cpu_first_tokens import first_backward, first_forward
from module.kernels.cpu_layers import merge_heads, softmax_backward, softmax_forward, split_heads
from module.kernels.cpu_stream import DROPOUT_BLOCK
from module.kernels.guard import float_address, is_plain_float
from mt_dnn.encoder.slot_layout import SlotLayout


class _Rectangles:
    """The rectangles of a batch for a number of heads: moves rows of tokens there and back."""

    def __init__(self, layout: SlotLayout, heads: int, n_tokens: int, width: int) -> None:
        self.layout, self.heads = layout, heads
        self.tokens = torch.Size((n_tokens, width))
        self._table = layout.examples  # kept alive while its address is in use
        self.job = (len(self._table), 2, self._table.ctypes.data, heads, width // heads)  # how each of them begins

    def split(
        self, tokens: tuple[Tensor, ...], scale: float = 1.0, biases: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        """(n_tokens, D) each -> (slots * D,) each, the first times ``scale``; one or three of them.

        ``biases``, (D,) each, are added before: three or none.
        """
        slots = tuple(new(self.layout.n_slots * self.tokens[1]) for _ in tokens)
        added = [place(bias, self.tokens[1:]) for bias in biases] or [0, 0, 0]
        split_heads(*self.job, *self._pairs(tokens, slots), *added, scale)
        return slots

    def merge(self, slots: tuple[Tensor, ...], scale: float = 1.0) -> tuple[Tensor, ...]:
        """(slots * D,) each -> (n_tokens, D) each, the first times ``scale``; one or three of them."""
        tokens = tuple(new(self.tokens) for _ in slots)
        merge_heads(*self.job, *self._pairs(tokens, slots), scale)
        return tokens

    def _pairs(self, tokens: tuple[Tensor, ...], slots: tuple[Tensor, ...]) -> list[int]:
        found = [0] * 6
        for i, (rows, squares) in enumerate(zip(tokens, slots, strict=True)):
            found[2 * i] = place(rows, self.tokens)
            found[2 * i + 1] = place(squares, squares.shape)
        return found

    def heads_of(self, slots: Tensor) -> list[Tensor]:
        """(slots * D,) -> of each group (size * H, T, d)."""
        d = self.tokens[1] // self.heads
        return [
            slots[group.start * self.tokens[1] : group.end * self.tokens[1]].view(-1, group.length, d)
            for group in self.layout.groups
        ]

    def squares_of(self, scores: Tensor) -> list[Tensor]:
        """(scores,) -> of each group (size * H, T, T)."""
        groups = self.layout.groups
        sizes = [self.heads * group.size * group.length**2 for group in groups]
        parts = torch.split(scores, sizes)
        return [part.view(-1, group.length, group.length) for part, group in zip(parts, groups, strict=True)]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: SlotLayout, draw: Draw, heads: int, scale: float
    ) -> Tensor:
        return _forward(ctx, (q, k, v), (), layout, draw, heads, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward(ctx, grad, ctx.saved_tensors), None, None, None, None)


class _SelfAttention(torch.autograd.Function):
    """With the products that make queries, keys and values of the hidden states."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, layout: SlotLayout, draw: Draw, heads: int, scale: float, *layers: Tensor
    ) -> Tensor:
        weights, biases = layers[::2], layers[1::2]
        tokens = tuple(F.linear(hidden, weight) for weight in weights)
        return _forward(ctx, tokens, biases, layout, draw, heads, scale, hidden, *weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, hidden, w_q, w_k, w_v = ctx.saved_tensors
        gradients, needed = _backward(ctx, grad, saved), ctx.needs_input_grad
        d_hidden = None
        if needed[0]:
            d_hidden = torch.mm(gradients[0], w_q)
            d_hidden.addmm_(gradients[1], w_k).addmm_(gradients[2], w_v)
        layers: list[Tensor | None] = []
        for i, gradient in enumerate(gradients):
            layers.append(torch.mm(gradient.t(), hidden) if needed[5 + 2 * i] else None)
            layers.append(gradient.sum(0) if needed[6 + 2 * i] else None)
        return (d_hidden, None, None, None, None, *layers)


def _forward(
    ctx: Any,
    tokens: tuple[Tensor, ...],
    biases: Sequence[Tensor],
    layout: SlotLayout,
    draw: Draw,
    heads: int,
    scale: float,
    *others: Tensor,
) -> Tensor:
    """Contexts of queries, keys and values; keeps what their gradients need, and ``others``."""
    made = _Rectangles(layout, heads, *tokens[0].shape)
    q, k, v = made.split(tokens, scale, biases)
    scores = new(layout.n_scores * heads)
    for out, left, right in zip(made.squares_of(scores), made.heads_of(q), made.heads_of(k), strict=True):
        torch.bmm(left, right.mT, out=out)
    dropped = scores if draw.threshold == 0 else torch.empty_like(scores)
    softmax_forward(*made.job, *draw.fields, layout.widest, place(scores, scores.shape), place(dropped, scores.shape))
    context = torch.empty_like(q)
    for out, left, right in zip(made.heads_of(context), made.squares_of(dropped), made.heads_of(v), strict=True):
        torch.bmm(left, right, out=out)
    ctx.save_for_backward(q, k, v, scores, dropped, *others)
    ctx.made, ctx.scale = made, scale
    return made.merge((context,))[0]


def _backward(ctx: Any, grad: Tensor, saved: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of queries, keys and values, (n_tokens, D) each."""
    made: _Rectangles = ctx.made
    q, k, v, scores, dropped = saved
    (grad,) = made.split((grad.contiguous(),))
    d_q, d_k, d_v, d_scores = (torch.empty_like(x) for x in (q, k, v, scores))
    heads, squares = made.heads_of, made.squares_of
    for one, g, v_g, p, d_v_g in zip(
        squares(d_scores), heads(grad), heads(v), squares(dropped), heads(d_v), strict=True
    ):
        torch.bmm(p.mT, g, out=d_v_g)
        torch.bmm(g, v_g.mT, out=one)
    shape = scores.shape
    softmax_backward(*made.job, made.layout.widest, place(scores, shape), place(dropped, shape), place(d_scores, shape))
    for one, q_g, k_g, d_q_g, d_k_g in zip(squares(d_scores), heads(q), heads(k), heads(d_q), heads(d_k), strict=True):
        torch.bmm(one, k_g, out=d_q_g)
        torch.bmm(one.mT, q_g, out=d_k_g)
    return made.merge((d_q, d_k, d_v), ctx.scale)


class _FirstTokens(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: SlotLayout, own: Any, draw: Draw, heads: int, scale: float
    ) -> Tensor:
        ctx.head = (len(own), 2, layout.examples.ctypes.data, heads, q.shape[1] // heads, own.ctypes.data)
        ctx.sizes = (layout.widest, scale)
        ctx.alive = layout.examples, own  # while their addresses are in use
        probabilities, out = new(heads * len(k)), torch.empty_like(q)
        dropped = probabilities if draw.threshold == 0 else torch.empty_like(probabilities)
        places = [place(tensor, tensor.shape) for tensor in (q, k, v, probabilities, dropped)]
        first_forward(*ctx.head, *ctx.sizes, *places, *draw.fields, place(out, q.shape))
        ctx.save_for_backward(q, k, v, probabilities, dropped)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, probabilities, dropped = ctx.saved_tensors
        gradients = (grad.contiguous(), *(torch.empty_like(x) for x in (q, k, v)))
        places = [place(tensor, tensor.shape) for tensor in (q, k, v, probabilities, dropped)]
        shapes = (q.shape, q.shape, k.shape, k.shape)
        first_backward(*ctx.head, *ctx.sizes, *places, *map(place, gradients, shapes))
        return (*gradients[1:], None, None, None, None, None)


def by_one_pass(*tensors: Tensor) -> bool:
    """Whether the kernels of this file take these tensors: plain float32 on the CPU, and nothing is being compiled."""
    return not torch.compiler.is_compiling() and all(map(is_plain_float, tensors))


def new(shape: torch.Size | Sequence[int] | int) -> Tensor:
    """Make room for float32 numbers on the CPU."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def place(tensor: Tensor, shape: torch.Size) -> int:
    """Return where a contiguous float32 tensor on the CPU lies."""
    return float_address("the encoder", "activation", tensor, shape)


@_disable_dynamo
def attend(q: Tensor, k: Tensor, v: Tensor, layout: SlotLayout, draw: Draw, heads: int, scale: float) -> Tensor:
    """Softmax attention with dropout of the probabilities.

    Args:
        q: (n_tokens, D) contiguous float32 on the CPU.
        k: like q.
        v: like q.
        layout: of the batch.
        draw: the masks.
        heads: H.
        scale: of the scores.

    Returns:
        (n_tokens, D).
    """
    out: Tensor = _Attention.apply(q, k, v, layout, draw, heads, scale)  # type: ignore[no-untyped-call]
    return out


@_disable_dynamo
def attend_to_itself(
    hidden: Tensor, layers: Sequence[tuple[Tensor, Tensor]], layout: SlotLayout, draw: Draw, heads: int, scale: float
) -> Tensor:
    """Like ``attend`` of hidden states (n_tokens, D), of which weights and biases make queries, keys and values."""
    own = [tensor for layer in layers for tensor in layer]
    out: Tensor = _SelfAttention.apply(hidden, layout, draw, heads, scale, *own)  # type: ignore[no-untyped-call]
    return out


@_disable_dynamo
def attend_first(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: SlotLayout,
    stream: DropoutStream | None,
    p: float,
    heads: int,
    scale: float,
) -> Tensor:
    """Softmax attention of each example's first token, with dropout of the probabilities.

    Args:
        q: (B, D) contiguous float32 on the CPU.
        k: (n_tokens, D), like v.
        v: see k.
        layout: of the batch.
        stream: the source of the masks, which are those of the rectangles; None: there is no dropout.
        p: of dropout.
        heads: H.
        scale: of the scores.

    Returns:
        (B, D).
    """
    starts, end = [], 0
    for group in layout.groups:  # a mask of its own, as it is drawn for a rectangle of rows of scores
        starts.append(end + heads * group.length * np.arange(group.size))
        end += -(-heads * group.length * group.size // DROPOUT_BLOCK) * DROPOUT_BLOCK
    own = np.stack([np.argsort(layout.rows.numpy()), np.concatenate(starts)], axis=1)
    draw = NO_DROPOUT if stream is None else stream.draw(end, p)
    out: Tensor = _FirstTokens.apply(q, k, v, layout, own, draw, heads, scale)  # type: ignore[no-untyped-call]
    return out
