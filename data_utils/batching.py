"""The order of batches, and the examples of each.

Orders come from (seed, name, epoch) alone, so every method sees the same batches.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_utils.errors import SettingError, shown

Sampler = Literal["reshuffle", "mtdnn", "length"]
SAMPLERS: tuple[Sampler, ...] = ("reshuffle", "mtdnn", "length")
_POOL = 50  # batches that the length sampler sorts together: long enough to save padding, short enough to stay random


def epoch_batches(
    n: int,
    batch_size: int,
    seed: int,
    epoch: int,
    sampler: Sampler = "reshuffle",
    *,
    lengths: ArrayLike | None = None,
) -> list[NDArray[np.int64]]:
    """Order one epoch: every one of ``n`` examples once; the last batch of a shuffle may be short.

    Args:
        n: examples, >= 1.
        batch_size: examples per batch, >= 1.
        seed: of the run.
        epoch: from 0.
        sampler: ``reshuffle`` draws a new permutation every epoch. ``mtdnn`` is MT-DNN's: batches are slices of the
            file, their order is drawn once, every epoch is the same. ``length`` puts examples of similar length
            together (less padding, less random), new every epoch.
        lengths: (n,) tokens per example; ``length`` needs it.

    Returns:
        One (<= batch_size,) int64 array of positions in [0, n) per batch.

    Raises:
        SettingError: an unknown sampler or a batch size below 1.
        ValueError: no examples, or no or wrongly many lengths for ``length``.
    """
    if sampler not in SAMPLERS:
        raise SettingError(f"sampler is {shown(sampler)}; legal values: {', '.join(SAMPLERS)}")
    if batch_size < 1:
        raise SettingError(f"batch_size is {batch_size}; it must be at least 1")
    if n < 1:
        raise ValueError(f"n is {n}; an epoch needs at least 1 example")
    if sampler == "mtdnn":
        slices = _chunks(np.arange(n), batch_size)
        return [slices[i] for i in stream_generator(seed, "order").permutation(len(slices))]
    generator = stream_generator(seed, "order", epoch)
    order = generator.permutation(n)
    if sampler == "reshuffle":
        return _chunks(order, batch_size)
    tokens = np.asarray(lengths)
    if lengths is None or tokens.shape != (n,):
        raise ValueError(f"sampler 'length' needs the lengths of all {n} examples")
    pool = np.arange(n) // (batch_size * _POOL)
    # Sorted by length inside each pool of shuffled examples; ties stay in shuffled order.
    batches = _chunks(order[np.lexsort((tokens[order], pool))], batch_size)
    return [batches[i] for i in generator.permutation(len(batches))]


def batches_over_laps(n_batches: int, lap: Callable[[int], list[NDArray[np.int64]]]) -> list[NDArray[np.int64]]:
    """Take batches from one round through a data set, and where it has fewer from the rounds behind it.

    Args:
        n_batches: how many.
        lap: gives the batches of a round, from its number.
    """
    taken, laps = list(lap(0)), 1
    while len(taken) < n_batches:
        taken += lap(laps)
        laps += 1
    return taken[:n_batches]


def share_of(window: NDArray[np.int64], lengths: NDArray[np.int64], rank: int, size: int) -> NDArray[np.int64]:
    """Divide the examples of one optimizer step among processes so that their tokens are about equal.

    Dealt out by length, forth and back, so the numbers of examples differ by at most 1; in their order within the step.

    Args:
        window: (n,) examples of the step.
        lengths: tokens of every example.
        rank: the process whose share is wanted, in [0, size).
        size: processes.

    Returns:
        (k,) its examples, none where there are fewer than processes; every example is in one share.
    """
    if size == 1:
        return window
    lap, place = np.divmod(np.arange(len(window)), size)
    dealt = np.where(lap % 2 == 0, place, size - 1 - place)
    by_length = np.argsort(-lengths[window], kind="stable")
    places: NDArray[np.int64] = np.sort(by_length[dealt == rank])
    return window[places]


def evaluation_batches(lengths: ArrayLike, max_tokens: int) -> list[NDArray[np.int64]]:
    """Split examples into batches of similar length under a token budget, longest first.

    Args:
        lengths: (N,) tokens per example.
        max_tokens: most tokens of a batch, padding included (B * T); an example longer than that is a batch alone.

    Returns:
        int64 arrays of positions in [0, N); every position once. None for N = 0.

    Raises:
        SettingError: ``max_tokens`` below 1.
    """
    if max_tokens < 1:
        raise SettingError(f"eval_batch_tokens is {max_tokens}; it must be at least 1")
    tokens = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-tokens, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(1, int(tokens[order[start]]))
        end = start + max(1, max_tokens // longest)
        batches.append(order[start:end])
        start = end
    return batches


def training_subset(
    n: int, seed: int, fraction: float | None = None, size: int | None = None, balance: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Choose rows of a training set; the smaller of two choices with one seed lies inside the larger.

    Args:
        n: rows there are, >= 1.
        seed: of the choice.
        fraction: part to keep, in (0, 1]; at least one row is kept.
        size: rows to keep, in [1, n].
        balance: (n,) class numbers, to keep equally many rows of every class, one more of the first where they do not
            come out even; None keeps them as they come.

    Returns:
        Sorted int64 row numbers; all rows where neither is given.

    Raises:
        SettingError: both are given, one is out of range, or a class has too few rows for the balance.
    """
    if fraction is not None and size is not None:
        raise SettingError(f"train_fraction ({fraction}) and train_size ({size}) are both given; choose one")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise SettingError(f"train_fraction is {fraction}; it must be in (0, 1]")
        size = max(1, round(fraction * n))
    if size is None:
        return np.arange(n)
    if not 1 <= size <= n:
        raise SettingError(f"train_size is {size}; this training set has rows for 1 to {n}")
    order = stream_generator(seed, "subset").permutation(n)
    return np.sort((order if balance is None else _class_by_class(order, np.asarray(balance), size))[:size])


def _class_by_class(order: NDArray[np.int64], labels: NDArray[Any], size: int) -> NDArray[np.int64]:
    """Reorder rows: the first of every class, then the second of every class, and so on."""
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    needed = -(-size // len(classes))
    if counts.min() < needed:
        raise SettingError(
            f"train_balanced: {size} rows are {needed} of each of {len(classes)} classes, and class "
            f"{classes[counts.argmin()]} has {counts.min()}; legal: train_size at most {counts.min() * len(classes)}"
        )
    by_class = order[np.argsort(codes[order], kind="stable")]
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)  # of a row in its class
    return by_class[np.lexsort((codes[by_class], place))]


def _chunks(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def stream_generator(seed: int, *stream: str | int) -> np.random.Generator:
    """Return the generator of a named stream of a seed."""
    name = "/".join(map(str, (seed, *stream)))
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest()))
