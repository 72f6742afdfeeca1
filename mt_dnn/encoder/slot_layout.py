"""The slots of a packed batch during attention: a few rectangles of examples of similar length.

One rectangle for the whole batch would cost attention B * T * T scores however short most examples are. Legend: B
examples, n_tokens real tokens of the batch. A *slot* is a place of a rectangle; all rectangles are counted through.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# What a rectangle costs besides its scores, in scores of one head, from timings on a CPU: each slot is copied in and
# out (as much as 16 keys more), and each rectangle needs its own calls.
_SLOT_COST = 16
_GROUP_COST = 6000


@dataclass(frozen=True, slots=True)
class SlotGroup:
    """One rectangle of slots.

    Attributes:
        start: its first slot.
        size: its examples.
        length: tokens of the longest of them.
        key_bias: (size, 1, 1, length) float32, 0 on real tokens and -inf elsewhere; None when all are equally long.
    """

    start: int
    size: int
    length: int
    key_bias: Tensor | None

    @property
    def end(self) -> int:
        """Slot behind its last one."""
        return self.start + self.size * self.length


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """All rectangles of a batch.

    Attributes:
        slot_tokens: (slots,) int64 token of each slot; an example's first token where the slot is padding.
        token_slots: (n_tokens,) int64 slot of each token; no slot twice.
        rows: (B,) int64 row of each example, counted through all rectangles.
        groups: the rectangles, in the order of their slots.
        examples: (B, 5) int64, by row of the rectangles: first slot, T, first token, tokens, sum of T**2 before it.
    """

    slot_tokens: Tensor
    token_slots: Tensor
    rows: Tensor
    groups: tuple[SlotGroup, ...]
    examples: npt.NDArray[np.int64]

    @property
    def n_slots(self) -> int:
        """Slots of all rectangles."""
        return self.groups[-1].end

    @property
    def n_scores(self) -> int:
        """Scores of one head."""
        return sum(group.size * group.length**2 for group in self.groups)

    @property
    def widest(self) -> int:
        """T of the last rectangle."""
        return self.groups[-1].length

    @property
    def is_identity(self) -> bool:
        """Whether token i stands in slot i: all examples are equally long."""
        return len(self.groups) == 1 and self.groups[0].key_bias is None


def slot_layout(cu_seqlens: npt.NDArray[np.int64], max_groups: int) -> SlotLayout:
    """Lay out a packed batch.

    Args:
        cu_seqlens: (B + 1,) place where each example starts, and n_tokens.
        max_groups: most rectangles, >= 1.
    """
    starts, lengths = cu_seqlens[:-1], np.diff(cu_seqlens)  # (B,)
    token_slots = np.empty(cu_seqlens[-1], dtype=np.int64)
    slot_tokens, groups, start = [], [], 0
    examples = length_groups(lengths, max_groups)
    for rows in examples:
        longest = int(lengths[rows].max())
        position = np.arange(longest)
        real = position < lengths[rows][:, None]  # (size, length)
        tokens = starts[rows][:, None] + np.where(real, position, 0)
        token_slots[tokens[real]] = start + np.flatnonzero(real)
        slot_tokens.append(tokens.reshape(-1))
        bias = np.where(real, np.float32(0), np.float32(-np.inf))
        key_bias = None if real.all() else torch.from_numpy(bias)[:, None, None, :]
        groups.append(SlotGroup(start, len(rows), longest, key_bias))
        start = groups[-1].end
    order = np.concatenate(examples)
    widths = np.concatenate([np.full(group.size, group.length) for group in groups])
    before = np.cumsum(widths) - widths, np.cumsum(widths**2) - widths**2
    return SlotLayout(
        slot_tokens=torch.from_numpy(np.concatenate(slot_tokens)),
        token_slots=torch.from_numpy(token_slots),
        rows=torch.from_numpy(np.argsort(order)),
        groups=tuple(groups),
        examples=np.stack([before[0], widths, starts[order], lengths[order], before[1]], axis=1),
    )


def length_groups(lengths: npt.NDArray[np.int64], max_groups: int) -> list[npt.NDArray[np.int64]]:
    """Divide examples by length so that attention over the rectangles costs least.

    Args:
        lengths: (B,) tokens per example, >= 1.
        max_groups: most groups, >= 1.

    Returns:
        Rows of each group, the groups from short to long; every row once.
    """
    distinct, counts = np.unique(lengths, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])  # examples shorter than distinct[i]
    examples = before[None, :] - before[:, None]  # [i, j]: with lengths i..j-1
    longest = np.concatenate([[0], distinct])  # [j]: of those
    cost = examples * longest * (longest + _SLOT_COST) + _GROUP_COST  # (U + 1, U + 1)
    cost = np.where(examples > 0, cost, np.inf)
    best, cuts = [np.where(before > 0, np.inf, 0.0)], []  # best[g][j]: lengths below j in g groups
    for _ in range(min(max_groups, len(distinct))):
        total = best[-1][:, None] + cost
        cuts.append(total.argmin(axis=0))
        best.append(total.min(axis=0))
    bounds = [len(distinct)]
    for choice in reversed(cuts[: int(np.argmin([b[-1] for b in best[1:]])) + 1]):
        bounds.append(int(choice[bounds[-1]]))
    order = np.argsort(lengths, kind="stable")
    inner = before[bounds[::-1]]
    return [order[a:b] for a, b in pairwise(inner)]
