"""The training set of a run as micro-batches, in the order of its epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass
class TrainingBatches:
    """Micro-batches of every optimizer step, on the device.

    A window is the places (in the N rows) of the examples of one step.
    """

    config: RunConfig
    data: Datasets
    rows: npt.NDArray[np.int64]
    """(N,) rows of the training set that are trained on."""
    parts: Parts
    """Encoder and device."""
    ranks: Ranks
    """Processes that divide every window."""

    def __post_init__(self) -> None:
        """Refuse examples that the encoder does not take."""
        encoder, name = self.parts.network.encoder, self.data.task_def.dataset_name("train")
        if not (self.data.begins or encoder.causal):
            raise SettingError(
                f"encoder: {self.config.encoder} is read at the first token of a text, and its tokenizer.json begins "
                "texts with none, such as [CLS]; save it with one"
            )
        encoder.limits.check(name, self.data.train, self.rows)
        self.lengths = self.data.train.lengths[self.rows]
        self.per_epoch = math.ceil(len(self.rows) / self.config.window)
        # All methods fill them, whether recorded or not: sizes decide where dropout's draws begin.
        self._filled = self.parts.network.encoder.attends_without_padding(self.parts.streams.device)

    def epoch(self, number: int, start: int) -> Iterator[tuple[list[Batch], int]]:
        """Batches of one epoch's steps, each made while the step before it runs.

        Args:
            number: Of the epoch, from 0.
            start: Steps of it that are made already.

        Yields:
            This rank's micro-batches of a step, and the number of the step's examples on all ranks.
        """
        config = self.config
        order = epoch_batches(len(self.rows), config.window, config.seed, number, config.sampler, lengths=self.lengths)
        windows = order[start:]
        for window, batches in zip(windows, prefetch(windows, self._per_rank), strict=True):
            yield batches, len(window)

    def one_pass(self) -> Iterator[list[Batch]]:
        """The training set once, in an order that no epoch has, whole on every rank."""
        seed = stream_seed(self.config.seed, "first pass")
        for window in epoch_batches(len(self.rows), self.config.window, seed, 0):
            yield self._batches(window)

    def _per_rank(self, window: npt.NDArray[np.int64]) -> list[Batch]:
        share = share_of(window, self.lengths, self.ranks.rank, self.ranks.size)
        return self._batches(share)

    def _batches(self, window: npt.NDArray[np.int64]) -> list[Batch]:
        rows, encoder, device = self.rows[window], self.parts.network.encoder, self.parts.streams.device
        parts = np.split(rows, range(self.config.batch_size, len(rows), self.config.batch_size))
        return [encoder.batch(self.data.train, part, device, filled=self._filled) for part in parts if len(part)]
