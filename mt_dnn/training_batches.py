"""The training sets of a run as micro-batches, in the order of its epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_utils.batching import epoch_batches, share_of
from data_utils.errors import SettingError
from data_utils.prefetch import prefetch
from module.seeds import stream_seed
from mt_dnn.assembly import Parts
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets
from mt_dnn.data_parallel import Ranks
from mt_dnn.encoder.batch import Batch
from mt_dnn.epoch_order import Window, epoch_windows


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
        more: dict[str, Any] = {"task": data.task_def.name, "soft_labels": data.soft_labels, "filled": self._filled}
        return [encoder.batch(data.train, part, device, **more) for part in parts if len(part)]
