"""The order of the examples of a run in an epoch: task by task, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_utils.batching import batches_over_laps, epoch_batches
from data_utils.errors import SettingError
from data_utils.task_mixing import mixed_length, mixed_tasks
from module.seeds import stream_seed
from mt_dnn.config import RunConfig

Window = tuple[tuple[int, npt.NDArray[np.int64]], ...]
"""The examples of an optimizer step: the place of a task, and places in the rows that the task trains on. Several only
where steps of several tasks have several micro-batches."""


def steps_per_epoch(config: RunConfig, n_examples: Sequence[int]) -> int:
    """Optimizer steps of an epoch, from the number of each task's examples."""
    if len(n_examples) == 1:
        return math.ceil(n_examples[0] / config.window)
    n_batches = [math.ceil(n / config.batch_size) for n in n_examples]
    return math.ceil(mixed_length(n_batches, config.ratio) / config.grad_accumulation_step)


def check_mixing(config: RunConfig, n_examples: Sequence[int]) -> None:
    """Refuse a ratio that leaves no batch of the other tasks, from the number of each task's examples.

    Raises:
        SettingError: it does.
    """
    n_batches = [math.ceil(n / config.batch_size) for n in n_examples]
    if len(n_batches) > 1 and mixed_length(n_batches, config.ratio) == n_batches[0]:
        least = math.ceil(1e4 / n_batches[0]) / 1e4
        raise SettingError(
            f"ratio is {config.ratio}: that is no batch of {', '.join(config.tasks[1:])} beside {n_batches[0]} of "
            f"{config.tasks[0]}; legal: 0, which takes all, or at least {least:g}"
        )


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
