"""The largest example that an encoder takes; a run looks for larger ones before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from data_utils.errors import SettingError, shown
from data_utils.token_cache import TokenCache

# RoFormer has the second name, GPT-2 the third.
_TABLES = ("position_embeddings", "embed_positions", "wpe")


@dataclass(frozen=True, slots=True)
class EncoderLimits:
    """The largest example that an encoder takes.

    Attributes:
        max_tokens: longest example the position table holds, special tokens included; None where the architecture has
            no table: relative and rotary positions.
        vocab_size: rows of the word embeddings; token ids are below it.
        first_position: number of an example's first position; RoBERTa and its kin keep the rows before it for padding.
    """

    max_tokens: int | None
    vocab_size: int
    first_position: int = 0

    @classmethod
    def of(cls, model: Any) -> EncoderLimits:
        """Limits of a transformers model, by the sizes of its tables."""
        rows = model.get_input_embeddings().weight.shape[0]
        for name, table in model.named_modules():
            if name.split(".")[-1] in _TABLES and isinstance(table, nn.Embedding):
                positions = min(table.num_embeddings, model.config.max_position_embeddings)
                first = 0 if table.padding_idx is None else table.padding_idx + 1
                return cls(positions - first, rows, first)
        return cls(None, rows)

    def check(
        self,
        name: str,
        cache: TokenCache,
        rows: npt.NDArray[np.int64] | None = None,
        uids: Sequence[str] | None = None,
        first: int = 1,
    ) -> None:
        """Refuse an example that does not fit.

        Args:
            name: of the data set, for the message.
            cache: its N examples.
            rows: those that are used; None is all.
            uids: (N,) names of texts to be scored, whose cache holds none.
            first: number of the first row, for the message.

        Raises:
            SettingError: an example is too long or holds a token that the embeddings lack; names row and uid.
        """
        lengths = cache.lengths if rows is None else cache.lengths[rows]

        def place(found: int) -> str:
            row = int(found if rows is None else rows[found])
            uid = uids[row] if uids is not None else cache.uids[row].decode()
            return f"{name}: row {row + first} (uid {shown(uid)})"

        if self.max_tokens is not None and len(lengths) and lengths.max() > self.max_tokens:
            longest = int(lengths.argmax())
            setting = "" if uids is not None else f"set --max_seq_len {self.max_tokens}, which cuts it, or "
            raise SettingError(
                f"{place(longest)} has {lengths[longest]} tokens, and this encoder takes {self.max_tokens}; "
                f"{setting}shorten the text"
            )
        if len(cache.tokens) == 0 or cache.tokens.max() < self.vocab_size:
            return
        beyond = np.flatnonzero(cache.tokens >= self.vocab_size)
        owners = np.searchsorted(cache.offsets, beyond, side="right") - 1
        used = np.isin(owners, np.arange(len(cache)) if rows is None else rows)
        if used.any():
            at = int(np.flatnonzero(used)[0])
            found = owners[at] if rows is None else np.flatnonzero(rows == owners[at])[0]
            raise SettingError(
                f"{place(int(found))} holds token id {cache.tokens[beyond[at]]}, and the word embeddings have "
                f"{self.vocab_size} rows: its tokenizer has tokens that its weights lack; give both as they were saved "
                f"together, or call resize_token_embeddings and save them again"
            )
