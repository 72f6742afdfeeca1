"""Batches as tensors on a device: packed (real tokens only, end to end) and padded.

Legend: B examples, T tokens of the longest example, n_tokens real tokens of the batch.
"""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_utils.batching import PackedBatch, PaddedBatch, pack, pad
from data_utils.token_cache import TokenCache
from mt_dnn.slots import SlotLayout, slot_layout

# Four rectangles are as fast as more on GLUE's lengths; on CUDA each one would be more kernels to launch.
CPU_GROUPS, CUDA_GROUPS = 4, 1


@dataclass(frozen=True, slots=True)
class PackedTensors:
    """The real tokens of a batch as one sequence.

    Attributes:
        input_ids: (n_tokens,) int64.
        position_ids: (n_tokens,) int64, from 0 in each example.
        token_type_ids: (n_tokens,) int64, 0 or 1.
        labels: (B,) int64 classes or float32 scores.
        indices: (B,) int64 rows of the token cache.
        first_tokens: (B,) int64 place of each example's first token.
        cu_seqlens: (B + 1,) int32 place where each example starts, and n_tokens.
        max_seqlen: T.
        slots: where the tokens stand during attention.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor
    labels: Tensor
    indices: Tensor
    first_tokens: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    slots: SlotLayout

    @property
    def size(self) -> int:
        """B."""
        return self.labels.shape[0]

    @property
    def n_tokens(self) -> int:
        """Real tokens of the batch."""
        return self.input_ids.shape[0]

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of each example."""
        return self.cu_seqlens.diff()

    def sum_of_examples(self, values: Tensor) -> Tensor:
        """(n_tokens,) -> (B,)."""
        return values.new_zeros(self.size).index_add(0, self._example_of_token, values)

    def to_tokens(self, values: Tensor) -> Tensor:
        """(B,) one number per example -> (n_tokens,)."""
        return values[self._example_of_token]

    @property
    def _example_of_token(self) -> Tensor:
        return (self.position_ids == 0).cumsum(0) - 1  # no look at the device's lengths, for which the host would wait


@dataclass(frozen=True, slots=True)
class PaddedTensors:
    """A batch as a rectangle.

    Attributes:
        input_ids: (B, T) int64.
        position_ids: (B, T) int64, from 0.
        token_type_ids: (B, T) int64.
        attention_mask: (B, T) int64, 1 on real tokens.
        labels: (B,) int64 classes or float32 scores.
        indices: (B,) int64 rows of the token cache.
        n_tokens: real tokens of the batch.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    indices: Tensor
    n_tokens: int

    @property
    def size(self) -> int:
        """B."""
        return self.labels.shape[0]

    @property
    def max_seqlen(self) -> int:
        """T."""
        return self.input_ids.shape[1]

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


Batch = PackedTensors | PaddedTensors


def packed_tensors(batch: PackedBatch, max_groups: int = CPU_GROUPS) -> PackedTensors:
    """Tensors of a packed batch, with the indices that attention needs computed once for all layers.

    Args:
        batch: arrays.
        max_groups: most rectangles that attention works on, >= 1.
    """
    return PackedTensors(
        input_ids=_tensor(batch.input_ids),
        position_ids=_tensor(batch.position_ids),
        token_type_ids=_tensor(batch.token_type_ids),
        labels=_tensor(batch.labels),
        indices=_tensor(batch.indices),
        first_tokens=_tensor(batch.cu_seqlens[:-1]),
        cu_seqlens=_tensor(batch.cu_seqlens.astype(np.int32)),
        max_seqlen=int(batch.max_seqlen),
        slots=slot_layout(batch.cu_seqlens, max_groups),
    )


def padded_tensors(batch: PaddedBatch) -> PaddedTensors:
    """Tensors of a padded batch."""
    return PaddedTensors(
        input_ids=_tensor(batch.input_ids),
        position_ids=_tensor(batch.position_ids),
        token_type_ids=_tensor(batch.token_type_ids),
        attention_mask=_tensor(batch.attention_mask),
        labels=_tensor(batch.labels),
        indices=_tensor(batch.indices),
        n_tokens=int(batch.attention_mask.sum()),
    )


def collate(
    cache: TokenCache, indices: npt.NDArray[np.int64], *, packed: bool, pad_id: int, device: torch.device
) -> Batch:
    """Rows of a token cache as a batch on a device.

    Args:
        cache: token cache.
        indices: (B,) rows.
        packed: packed tensors, else padded ones.
        pad_id: token that fills padded rows (unused when packed).
        device: where the batch goes; the copy to a CUDA device does not hold up the host.
    """
    if not packed:
        return to_device(padded_tensors(pad(cache, indices, pad_id)), device)
    max_groups = CUDA_GROUPS if device.type == "cuda" else CPU_GROUPS
    return to_device(packed_tensors(pack(cache, indices), max_groups), device)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on a device; through page-locked memory to CUDA, so that the host does not wait for the copy."""
    if device.type == "cpu":
        return batch

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
        if isinstance(value, tuple):
            return tuple(map(moved, value))
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{f.name: moved(getattr(value, f.name)) for f in fields(value)})
        return value

    result: Batch = moved(batch)
    return result


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    """A tensor on the array's memory; copied only where the array is a read-only view (of a memory map)."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
