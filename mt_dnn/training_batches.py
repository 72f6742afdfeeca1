"""The training sets of a run as micro-batches, in the order of its epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_utils.batching import batches_over_laps, epoch_batches, share_of
from data_utils.errors import SettingError
from data_utils.prefetch import prefetch
from data_utils.task_mixing import mixed_tasks
from module.seeds import stream_seed
from mt_dnn.assembly import Parts
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets
from mt_dnn.data_parallel import Ranks
from mt_dnn.encoder.batch import Batch

Window = tuple[tuple[int, npt.NDArray[np.int64]], ...]
"""The examples of an optimizer step: the place of a task, and places in the rows that the task trains on. Several only
where steps of several tasks have several micro-batches."""


@dataclass(frozen=True, slots=True)
class StepBatches:
    """The part of an optimizer step that one rank makes."""

    batches: list[Batch]
    """Its micro-batches, each of one task."""
    examples: int
    """Of the step, on all ranks."""
    tasks: frozenset[str]
    """Of the step, on all ranks."""


@dataclass
class TrainingBatches:
    """Micro-batches of every optimizer step, on the device."""

    config: RunConfig
    data: Sequence[Datasets]
    """Of each task, the main one first."""
    parts: Parts
    """Encoder and device."""
    ranks: Ranks
    """Processes that divide every window."""

    def __post_init__(self) -> None:
        """Refuse examples that the encoder does not take."""
        encoder = self.parts.network.encoder
        for data in self.data:
            if not (data.begins or encoder.causal):
                raise SettingError(
                    f"encoder: {self.config.encoder} is read at the first token of a text, and its tokenizer.json "
                    "begins texts with none, such as [CLS]; save it with one"
                )
            encoder.limits.check(data.task_def.dataset_name("train"), data.train, data.train_rows)
        self.lengths = [data.train.lengths[data.train_rows] for data in self.data]
        # All methods fill them, whether recorded or not: sizes decide where dropout's draws begin.
        self._filled = encoder.attends_without_padding(self.parts.streams.device)

    def epoch(self, number: int, start: int) -> Iterator[StepBatches]:
        """Batches of one epoch's steps, each made while the step before it runs.

        Args:
            number: Of the epoch, from 0.
            start: Steps of it that are made already.
        """
        windows = epoch_windows(self.config, self.lengths, number)[start:]
        for window, batches in zip(windows, prefetch(windows, self._per_rank), strict=True):
            tasks = frozenset(self.config.tasks[task] for task, _ in window)
            yield StepBatches(batches, sum(len(places) for _, places in window), tasks)

    def one_pass(self) -> Iterator[list[Batch]]:
        """The training sets once, in an order that no epoch has, whole on every rank."""
        seed = stream_seed(self.config.seed, "first pass")
        for task, lengths in enumerate(self.lengths):
            for places in epoch_batches(len(lengths), self.config.window, seed, 0):
                yield self._batches(task, places)

    def _per_rank(self, window: Window) -> list[Batch]:
        return [
            batch
            for task, places in window
            for batch in self._batches(task, share_of(places, self.lengths[task], self.ranks.rank, self.ranks.size))
        ]

    def _batches(self, task: int, places: npt.NDArray[np.int64]) -> list[Batch]:
        data, encoder, device = self.data[task], self.parts.network.encoder, self.parts.streams.device
        rows = data.train_rows[places]
        parts = np.split(rows, range(self.config.batch_size, len(rows), self.config.batch_size))
        filled, task_name = self._filled, data.task_def.name
        return [encoder.batch(data.train, part, device, filled=filled, task=task_name) for part in parts if len(part)]


def steps_per_epoch(config: RunConfig, n_examples: Sequence[int]) -> int:
    """Optimizer steps of an epoch, from the number of each task's examples."""
    return len(epoch_windows(config, [np.ones(n, np.int64) for n in n_examples], 0))


def epoch_windows(config: RunConfig, lengths: Sequence[npt.NDArray[np.int64]], epoch: int) -> list[Window]:
    """Order one epoch.

    The batches of a task are those that a run with it alone has. The micro-batches of a step follow one another in the
    order of all tasks' batches, so that one step may see several.

    Args:
        config: The run.
        lengths: (n,) tokens of each example, task by task.
        epoch: From 0.

    Returns:
        The examples of each optimizer step.
    """
    if len(lengths) == 1:
        alone = epoch_batches(len(lengths[0]), config.window, config.seed, epoch, config.sampler, lengths=lengths[0])
        return [((0, places),) for places in alone]
    n_batches = [math.ceil(len(of_task) / config.batch_size) for of_task in lengths]
    order = mixed_tasks(n_batches, config.seed, epoch, config.mix_opt, config.ratio, config.mix_temperature)
    counts = np.bincount(order, minlength=len(lengths)).tolist()
    each = [iter(_batches_of_task(config, *of_task, epoch)) for of_task in zip(lengths, counts, strict=True)]
    batches = [(task, next(each[task])) for task in order.tolist()]
    per_step = config.grad_accumulation_step
    return [tuple(batches[first : first + per_step]) for first in range(0, len(batches), per_step)]


def _batches_of_task(
    config: RunConfig, lengths: npt.NDArray[np.int64], n_batches: int, epoch: int
) -> list[npt.NDArray[np.int64]]:
    """So many batches of a task; where it has fewer, from a second round through it, and so on."""

    def lap(number: int) -> list[npt.NDArray[np.int64]]:
        seed = stream_seed(config.seed, f"lap {number}") if number else config.seed
        return epoch_batches(len(lengths), config.batch_size, seed, epoch, config.sampler, lengths=lengths)

    return batches_over_laps(n_batches, lap)
