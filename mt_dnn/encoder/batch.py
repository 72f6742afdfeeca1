"""Batches of a token cache as tensors: packed (real tokens only, end to end) or padded.

They are made by index arithmetic over the whole batch; there is no Python loop over examples or tokens.
Legend: B examples, T tokens of the longest example, n_tokens tokens of the batch, N rows of a cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from data_utils.token_cache import TokenCache
from mt_dnn.encoder.slot_layout import SlotLayout, slot_layout

# Four rectangles are as fast as more on GLUE's lengths; on CUDA each one would be more kernels to launch.
CPU_GROUPS, CUDA_GROUPS = 4, 1
_ALIGNMENT = 256  # bytes, as torch's allocator has it on CUDA
_SMALLEST_SIZE = 64  # tokens


@dataclass(frozen=True, slots=True)
class _Examples:
    """The examples of a batch in either layout; a value per token is (n_tokens,) packed and (B, T) padded.

    Attributes:
        input_ids: int64 per token.
        position_ids: int64 per token, from 0 in each example.
        token_type_ids: int64 per token, 0 or 1; 0 on padding.
        labels: (B,) int64 classes or float32 scores.
        indices: (B,) int64 rows of the token cache.
        task: name of the task that all examples are of; empty in a network with one.
        soft_labels: (B, K) float32 logits of a teacher; None: there are none.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor
    labels: Tensor
    indices: Tensor
    task: str = field(default="", kw_only=True)
    soft_labels: Tensor | None = field(default=None, kw_only=True)

    @property
    def size(self) -> int:
        """B."""
        return self.labels.shape[0]

    def to(self, device: torch.device) -> Self:
        """Copy the batch to a device in one piece, to CUDA from page-locked memory: the host does not wait for it."""
        if device.type == "cpu":
            return self
        moved: Self = _replaced(self, iter(_sent([*_tensors(self)], device)))
        return moved


@dataclass(frozen=True, slots=True)
class PackedBatch(_Examples):
    """The real tokens of a batch as one sequence.

    Attributes:
        first_tokens: (B,) int64 place of each example's first token; (B + 1,) if filled.
        cu_seqlens: (B + 1,) int32 place where each example starts, and n_tokens; (B + 2,) if filled.
        max_seqlen: T.
        slots: where the tokens stand during attention, those of nobody too; None where attention goes without padding.
        span: tokens that attention looks for in an example, T or more; None where the batch is not filled.
    """

    first_tokens: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    slots: SlotLayout | None
    span: int | None = None

    @property
    def filled(self) -> bool:
        """Whether the last tokens belong to an example that nobody reads (:func:`fill`)."""
        return self.span is not None

    @property
    def n_tokens(self) -> int:
        """Tokens of the batch."""
        return self.input_ids.shape[0]

    @property
    def last_tokens(self) -> Tensor:
        """(B,) int64 place of each example's last token; (B + 1,) if filled."""
        return self.cu_seqlens[1:].long() - 1

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of each example."""
        return self.cu_seqlens[: self.size + 1].diff()

    def sum_of_examples(self, values: Tensor) -> Tensor:
        """(n_tokens,) -> (B,)."""
        sums = values.new_zeros(self.size + self.filled).index_add(0, self._example_of_token, values)
        return sums[: self.size]

    def to_tokens(self, values: Tensor) -> Tensor:
        """(B,) one number per example -> (n_tokens,), 0 on tokens of nobody."""
        return (torch.cat([values, values.new_zeros(1)]) if self.filled else values)[self._example_of_token]

    @property
    def _example_of_token(self) -> Tensor:
        return (self.position_ids == 0).cumsum(0) - 1  # no look at the device's lengths, for which the host would wait


@dataclass(frozen=True, slots=True)
class PaddedBatch(_Examples):
    """A batch as a rectangle: a row per example, padded at the end to the longest.

    Attributes:
        attention_mask: (B, T) int64, 1 on real tokens.
        n_tokens: real tokens of the batch.
    """

    attention_mask: Tensor
    n_tokens: int

    @property
    def max_seqlen(self) -> int:
        """T."""
        return self.input_ids.shape[1]

    @property
    def last_tokens(self) -> Tensor:
        """(B,) int64 place of each example's last token, counted through the rows."""
        lengths = self.lengths
        return torch.arange(len(lengths), dtype=torch.int64, device=lengths.device) * self.max_seqlen + lengths - 1

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of each example."""
        return self.attention_mask.sum(dim=1)

    def sum_of_examples(self, values: Tensor) -> Tensor:
        """(B, T) -> (B,) over the real tokens."""
        return (values * self.attention_mask).sum(dim=1)

    def to_tokens(self, values: Tensor) -> Tensor:
        """(B,) one number per example -> (B, T), 0 on padding."""
        return values[:, None] * self.attention_mask


Batch = PackedBatch | PaddedBatch


def pack(cache: TokenCache, indices: ArrayLike, max_groups: int | None = CPU_GROUPS) -> PackedBatch:
    """Gather rows of a cache, end to end, with the indices that attention needs computed once for all layers.

    Args:
        cache: an open cache.
        indices: (B,) rows, B >= 1, in any order, repeats allowed.
        max_groups: most rectangles that attention works on, >= 1; None: it goes without, and the batch has no slots.

    Raises:
        ValueError: no index, or one outside [0, N).
    """
    rows, starts, lengths = _spans(cache, indices)
    cu_seqlens = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=cu_seqlens[1:])
    position = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
    segment = np.repeat(cache.segment[rows].astype(np.int64), lengths)
    return PackedBatch(
        input_ids=torch.from_numpy(cache.tokens[position + np.repeat(starts, lengths)].astype(np.int64)),
        position_ids=torch.from_numpy(position),
        token_type_ids=torch.from_numpy(((segment > 0) & (position >= segment)).astype(np.int64)),
        labels=torch.from_numpy(cache.labels[rows]),
        indices=torch.from_numpy(rows),
        first_tokens=torch.from_numpy(cu_seqlens[:-1]),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(lengths.max()),
        slots=None if max_groups is None else slot_layout(cu_seqlens, max_groups),
    )


def fill(batch: PackedBatch, max_groups: int | None) -> PackedBatch:
    """Bring a batch to one of a few sizes by an example that nobody reads: its first token over and over.

    Without dropout, gradients are what they were, to rounding. Sizes are multiples of an eighth of the power of two
    below, of 64 at least; spans are powers of two.

    Args:
        batch: On the CPU.
        max_groups: As of :func:`pack`.
    """
    n = batch.n_tokens
    added = filled_size(n) - n
    nothing = torch.zeros(added, dtype=torch.int64, device="cpu")
    positions = torch.arange(added, dtype=torch.int64, device="cpu").clamp(max=1)  # 0, 1, 1, ...: any table has them
    starts = np.append(batch.cu_seqlens.numpy(), n + added).astype(np.int64)
    return replace(
        batch,
        input_ids=torch.cat([batch.input_ids, batch.input_ids[:1].expand(added)]),
        position_ids=torch.cat([batch.position_ids, positions]),
        token_type_ids=torch.cat([batch.token_type_ids, nothing]),
        first_tokens=torch.from_numpy(starts[:-1]),
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
        slots=None if max_groups is None else slot_layout(starts, max_groups),
        span=1 << (max(batch.max_seqlen, added, _SMALLEST_SIZE) - 1).bit_length(),
    )


def filled_size(n_tokens: int) -> int:
    """Tokens of a filled batch, more than before."""
    unit = max(_SMALLEST_SIZE, 1 << max(0, n_tokens.bit_length() - 4))
    return (n_tokens // unit + 1) * unit


def pad(cache: TokenCache, indices: ArrayLike, pad_id: int) -> PaddedBatch:
    """Gather rows of a cache, one per row, padded at the end.

    Args:
        cache: an open cache.
        indices: (B,) rows, B >= 1, in any order, repeats allowed.
        pad_id: token that fills the rest of a row.

    Raises:
        ValueError: no index, or one outside [0, N).
    """
    rows, starts, lengths = _spans(cache, indices)
    column = np.arange(lengths.max())  # (T,)
    real = column < lengths[:, None]  # (B, T)
    input_ids = np.full(real.shape, pad_id, dtype=np.int64)
    input_ids[real] = cache.tokens[(starts[:, None] + column)[real]]
    segment = cache.segment[rows].astype(np.int64)[:, None]
    return PaddedBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(np.tile(column, (len(rows), 1))),
        token_type_ids=torch.from_numpy((real & (segment > 0) & (column >= segment)).astype(np.int64)),
        attention_mask=torch.from_numpy(real.astype(np.int64)),
        labels=torch.from_numpy(cache.labels[rows]),
        indices=torch.from_numpy(rows),
        n_tokens=int(lengths.sum()),
    )


def _spans(cache: TokenCache, indices: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return rows, first tokens and lengths, all (B,)."""
    rows = np.array(indices, dtype=np.int64)
    if rows.ndim != 1 or len(rows) == 0 or rows.min() < 0 or rows.max() >= len(cache):
        raise ValueError(f"indices must be a non-empty list of rows in [0, {len(cache)})")
    starts = np.asarray(cache.offsets[rows])
    return rows, starts, np.asarray(cache.offsets[rows + 1]) - starts


def _sent(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of tensors on a device, all of them parts of one buffer."""
    sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
    buffer = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
    for part, tensor in zip(buffer.split_with_sizes(sizes), tensors, strict=True):
        part[: tensor.nbytes].view(tensor.dtype).copy_(tensor.reshape(-1))
    there = buffer.to(device, non_blocking=True).split_with_sizes(sizes)
    return [
        part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape) for part, tensor in zip(there, tensors, strict=True)
    ]


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a part of a batch."""
    if isinstance(value, Tensor):
        yield value
    for part in value if isinstance(value, tuple) else ():
        yield from _tensors(part)
    for part in fields(value) if is_dataclass(value) else ():
        yield from _tensors(getattr(value, part.name))


def _replaced(value: Any, tensors: Iterator[Tensor]) -> Any:
    """A part of a batch with other tensors, in the order of :func:`_tensors`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple):
        return tuple(_replaced(part, tensors) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _replaced(getattr(value, f.name), tensors) for f in fields(value)})
    return value
