"""The pattern of attention's scores beside the product of query and key: the keys a query sees, and what is added.

Legend: H heads, T tokens of the longest example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ScorePattern:
    """The scores of one layer.

    Attributes:
        causal: a query sees itself and what is before it.
        window: a query sees keys whose distance from it is smaller; None: all.
        softcap: scores are squeezed into (-softcap, softcap); None: they are not.
        relative: (1, H, T, T) added to the scores, by positions of query and key; None: nothing is.
    """

    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    relative: Tensor | None = None

    @classmethod
    def of(cls, module: nn.Module, window: int | None, softcap: float | None, relative: Tensor | None) -> ScorePattern:
        """The pattern of a layer of transformers, from its module and the keywords of its call."""
        config: Any = getattr(module, "config", None)
        causal = bool(getattr(module, "is_causal", False)) and getattr(config, "is_causal", True)
        return cls(causal, window, softcap, relative)

    def is_plain(self, longest: int) -> bool:
        """Whether it does nothing to examples of at most so many tokens."""
        narrow = self.window is not None and longest > self.window
        return not (self.causal or narrow) and self.softcap is None and self.relative is None

    def bias(self, length: int, like: Tensor) -> Tensor | None:
        """(1, 1 or H, length, length) to add to scores, of the dtype of ``like``; None: nothing.

        Hidden keys get a number that leaves no weight and is no infinity: a query of padding may see no real key, and
        its softmax must be a number.
        """
        window = length if self.window is None else self.window
        added = None if self.relative is None else self.relative[..., :length, :length].to(like.dtype)
        if not self.causal and length <= window:
            return added
        place = torch.arange(length, dtype=torch.int64, device=like.device)
        before = place[:, None] - place  # (T, T) from the key to the query
        hidden = before < 0 if self.causal else torch.zeros_like(before, dtype=torch.bool)
        if length > window:
            hidden = hidden | (before.abs() >= window)
        band = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        band = band.masked_fill(hidden, torch.finfo(like.dtype).min / 2)[None, None]
        return band if added is None else band + added
