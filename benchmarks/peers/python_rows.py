"""Rows of a token cache as the peers hold them: one dictionary of Python lists per example."""

from collections.abc import Iterable
from typing import TypedDict

from data_utils.batching import epoch_batches, training_subset
from data_utils.token_cache import TokenCache
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets


class Row(TypedDict):
    """One example; the two lists are equally long."""

    input_ids: list[int]
    token_type_ids: list[int]
    label: int | float


def python_rows(cache: TokenCache, rows: Iterable[int], longest: int | None = None) -> list[Row]:
    """Read rows of a cache.

    Args:
        cache: an open cache.
        rows: which, in this order.
        longest: most tokens of an example; longer ones lose tokens before the last, which is the separator.
    """
    examples = []
    for row in rows:
        ids = cache.tokens[cache.offsets[row] : cache.offsets[row + 1]].tolist()
        start = int(cache.segment[row]) or len(ids)
        types = [int(place >= start) for place in range(len(ids))]
        if longest is not None and len(ids) > longest:
            ids, types = ids[: longest - 1] + ids[-1:], types[: longest - 1] + types[-1:]
        examples.append(Row(input_ids=ids, token_type_ids=types, label=cache.labels[row].item()))
    return examples


def training_rows(config: RunConfig, data: Datasets, longest: int | None = None) -> list[Row]:
    """The training examples of a run, its subset of the training set where it has one."""
    subset = training_subset(len(data.train), config.seed, config.train_fraction, config.train_size)
    return python_rows(data.train, subset.tolist(), longest)


def dev_rows(data: Datasets, longest: int | None = None) -> list[Row]:
    """The examples of the one dev set.

    Raises:
        ValueError: the task has several; the peers evaluate one.
    """
    (cache,) = data.dev.values()
    return python_rows(cache, range(len(cache)), longest)


def batch_order(config: RunConfig, n: int, epoch: int) -> list[list[int]]:
    """Positions among ``n`` training rows of every batch of an epoch: the order of this project's own loop.

    Raises:
        ValueError: a sampler that needs lengths, or steps of several batches; the peers do neither.
    """
    if config.sampler == "length" or config.grad_accumulation_step != 1:
        raise ValueError("a peer needs sampler reshuffle or mtdnn and grad_accumulation_step 1")
    return [batch.tolist() for batch in epoch_batches(n, config.batch_size, config.seed, epoch, config.sampler)]
