"""The held-out part of a training set, on which choices are made."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_utils.batching import stream_generator
from data_utils.errors import SettingError
from data_utils.token_cache import TokenCache

_SEED = 0  # not the run's: every method and seed holds the same rows out


def held_out_rows(labels: ArrayLike, share: float, stratify: bool, seed: int = _SEED) -> NDArray[np.int64]:
    """Choose the rows to hold out; the same ones for the same labels, share and seed, always.

    Args:
        labels: (N,) of the training set.
        share: part to hold out, in (0, 1); the result has round(share N) rows.
        stratify: whether every label is held out in proportion, to within one row.
        seed: another one holds other rows out.

    Returns:
        Sorted row numbers.

    Raises:
        SettingError: nothing would be held out, or nothing left to train on.
    """
    classes = np.unique(np.asarray(labels), return_inverse=True)[1] if stratify else np.zeros(len(np.asarray(labels)))
    n, wanted = len(classes), round(share * len(classes))
    if not 0 < wanted < n:
        raise SettingError(f"holdout is {share}: that is {wanted} of {n} training rows; hold out 1 to {n - 1} of them")
    order = stream_generator(seed, "holdout").permutation(n)
    by_class = order[np.argsort(classes[order], kind="stable")]
    # Every 1/share-th row along the classes: each class gives its share to within one row.
    marks = np.diff(np.floor(np.arange(n + 1) * wanted / n + 0.5)).astype(bool)
    return np.sort(by_class[marks])


def take(cache: TokenCache, rows: NDArray[np.int64]) -> TokenCache:
    """Copy some rows of a data set to one in memory.

    Args:
        cache: The other data set.
        rows: (M,) its rows, M >= 1.
    """
    lengths = cache.lengths[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    positions = np.arange(offsets[-1]) + np.repeat(cache.offsets[rows] - offsets[:-1], lengths)
    chosen = hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest()
    files = {
        name: {"sha256": hashlib.sha256((entry["sha256"] + chosen).encode()).hexdigest()}
        for name, entry in cache.manifest["files"].items()
    }
    return dataclasses.replace(
        cache,
        tokens=np.asarray(cache.tokens[positions]),
        offsets=offsets,
        segment=np.asarray(cache.segment[rows]),
        labels=np.asarray(cache.labels[rows]),
        uids=np.asarray(cache.uids[rows]),
        manifest={**cache.manifest, "n": len(rows), "n_tokens": int(offsets[-1]), "files": files},
    )
