"""The order in which the batches of several tasks come in an epoch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_utils.batching import stream_generator


def mixed_tasks(
    n_batches: Sequence[int],
    seed: int,
    epoch: int,
    mix_opt: int = 0,
    ratio: float = 0.0,
    temperature: float | None = None,
) -> NDArray[np.int64]:
    """Draw the task of each batch of an epoch.

    The first three settings are MT-DNN's: all batches shuffled; ``mix_opt`` 1 with the first task's at the end; and of
    the other tasks' batches no more than ``ratio`` times the first task's, without replacement. A temperature T divides
    as many batches as there are by the shares ``n_batches^(1/T)``: 1 gives each task its own, and large T all the same.

    Args:
        n_batches: (tasks,) of each task's epoch, >= 1.
        seed: of the run.
        epoch: from 0.
        mix_opt: 0 or 1.
        ratio: >= 0; 0 takes all.
        temperature: >= 1; None takes all.

    Returns:
        (batches,) places of tasks; as many in every epoch.
    """
    generator = stream_generator(seed, "mixed tasks", epoch)
    counts = np.asarray(n_batches if temperature is None else _tempered(n_batches, temperature))
    main, others = np.zeros(counts[0], np.int64), np.repeat(np.arange(1, len(counts)), counts[1:])
    if ratio > 0:
        others = generator.permutation(others)[: mixed_length(n_batches, ratio) - len(main)]
    if mix_opt:
        return np.concatenate([generator.permutation(others), main])
    return generator.permutation(np.concatenate([main, others]))


def mixed_length(n_batches: Sequence[int], ratio: float = 0.0) -> int:
    """Count the batches of an epoch; see :func:`mixed_tasks`."""
    main, others = n_batches[0], sum(n_batches[1:])
    # MT-DNN rounds down; the small term undoes 0.29 * 100 = 28.999...
    return main + (int(min(others, ratio * main * (1 + 1e-12))) if ratio > 0 else others)


def _tempered(n_batches: Sequence[int], temperature: float) -> NDArray[np.int64]:
    """Divide the sum of all tasks' batches by the shares of a temperature, with at least one for each task.

    The largest remainders get what rounding down leaves.
    """
    weights: NDArray[np.float64] = np.asarray(n_batches, dtype=np.float64) ** (1.0 / temperature)
    total = sum(n_batches)
    exact = total * weights / weights.sum()
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(-(exact - counts), kind="stable")
    counts[by_remainder[: total - int(counts.sum())]] += 1
    for none in np.flatnonzero(counts == 0):
        counts[none] += 1
        counts[counts.argmax()] -= 1
    return counts
