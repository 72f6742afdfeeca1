"""Predictions for texts, piece by piece: memory does not grow with the number of texts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from data_utils.batching import evaluation_batches
from data_utils.text_rows import TextRows
from data_utils.token_cache import TokenCache
from data_utils.tokenizer import Encoded, Texts, encode_batches
from mt_dnn.backends import cuda_backends
from mt_dnn.evaluation import all_logits
from mt_dnn.trained.load import TrainedModel

PIECE = 1024
"""Rows in memory at a time; those of one piece are put into batches by length."""


def predict(
    model: TrainedModel, pieces: Iterable[TextRows], batch_tokens: int = 8192, name: str = "texts"
) -> Iterator[tuple[TextRows, npt.NDArray[np.float32]]]:
    """Compute the logits of texts; the next piece is tokenised meanwhile.

    Args:
        model: from ``mt_dnn.trained.load``.
        pieces: rows, piece by piece.
        batch_tokens: tokens of a batch.
        name: source of the texts, for messages.

    Yields:
        Each piece with its (N, K) logits, rows in their order.

    Raises:
        SettingError: a text does not fit into the encoder's tables.
    """
    first = 1
    waiting: deque[TextRows] = deque()

    def texts() -> Iterator[Texts]:
        for rows in pieces:
            waiting.append(rows)
            yield rows.premise, rows.hypothesis

    for encoded in encode_batches(model.tokenizer, texts(), pair=model.task_def.pair, max_seq_len=model.max_seq_len):
        rows = waiting.popleft()
        model.network.encoder.limits.check(name, unlabelled(encoded), uids=rows.uids, first=first)
        first += len(rows.uids)
        yield rows, logits_of(model, encoded, batch_tokens)


def logits_of(model: TrainedModel, encoded: Encoded, batch_tokens: int) -> npt.NDArray[np.float32]:
    """(N, K) logits of tokenised texts."""
    cache = unlabelled(encoded)
    batches = evaluation_batches(cache.lengths, batch_tokens)
    with cuda_backends(model.device):
        return all_logits(model.network, cache, batches, model.task_def.n_class, model.device, model.precision)


def unlabelled(encoded: Encoded) -> TokenCache:
    """Make a token cache in memory, without labels and uids."""
    n = len(encoded.offsets) - 1
    return TokenCache(
        path=Path(),
        tokens=encoded.tokens,
        offsets=encoded.offsets,
        segment=encoded.segment,
        labels=np.zeros(n, np.int64),
        uids=np.zeros(n, "S1"),
        manifest={},
    )


def probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Softmax of (N, K) logits."""
    found: npt.NDArray[np.float64] = softmax(logits.astype(np.float64), axis=1)
    return found
