"""The training set of a run as micro-batches, in the order of its epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from data_utils.batching import epoch_batches, share_of
from module.seeds import stream_seed
from mt_dnn.batch import Batch
from mt_dnn.config import RunConfig
from mt_dnn.data import Datasets
from mt_dnn.data_parallel import Ranks
from mt_dnn.encoder import Encoder
from mt_dnn.prefetch import prefetch


class TrainingBatches:
    """Micro-batches of every optimizer step, on the device.

    A window is the places (in the N rows) of the examples of one step.

    Args:
        config: The run.
        data: Its sets.
        rows: (N,) rows of the training set that are trained on.
        encoder: Makes its batches.
        device: Where they go.
        ranks: Processes that divide every window.

    Raises:
        SettingError: An example does not fit the encoder.
    """

    def __init__(
        self,
        config: RunConfig,
        data: Datasets,
        rows: npt.NDArray[np.int64],
        encoder: Encoder,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        encoder.limits.check(data.task_def.dataset_name("train"), data.train, rows)
        self.config, self.train, self.rows, self.encoder = config, data.train, rows, encoder
        self.device, self.ranks = device, ranks
        self.lengths = data.train.lengths[rows]
        self.per_epoch = math.ceil(len(rows) / config.window)

    def epoch(self, number: int, start: int) -> Iterator[tuple[list[Batch], int]]:
        """Batches of one epoch's steps, each made while the step before it runs.

        Args:
            number: Of the epoch, from 0.
            start: Steps of the epoch that are made already.

        Yields:
            This rank's micro-batches of a step, and the step's examples on all ranks.
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
        return self._batches(share_of(window, self.lengths, self.ranks.rank, self.ranks.size))

    def _batches(self, window: npt.NDArray[np.int64]) -> list[Batch]:
        rows = self.rows[window]
        parts = np.split(rows, range(self.config.batch_size, len(rows), self.config.batch_size))
        return [self.encoder.batch(self.train, part, self.device) for part in parts if len(part)]
