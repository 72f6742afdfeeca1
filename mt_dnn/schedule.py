"""Learning-rate multipliers as functions of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math


def learning_rate_multiplier(step: int, total_steps: int, warmup: float, schedule: str) -> float:
    """Multiplier of the peak learning rate for the update made at ``step``.

    With x = step / total_steps and w = warmup: x / w while x < w. After warm-up, with y = (x - w) / (1 - w):
    ``linear`` is 1 - y, ``cosine`` (1 + cos(pi y)) / 2, ``constant`` 1. ``linear_legacy`` is
    pytorch-pretrained-bert 0.6.0's ``warmup_linear``, 1 - x after warm-up, which falls from 1 to 1 - w in one step.
    The first update has multiplier 0 whenever there is warm-up, as in MT-DNN.

    Args:
        step: Updates made so far, 0 <= step < total_steps.
        total_steps: Updates of the whole run, >= 1.
        warmup: Share of the steps with a rising rate, in [0, 1).
        schedule: ``linear``, ``cosine``, ``constant`` or ``linear_legacy``.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: an unknown schedule.
    """
    x = step / total_steps
    if x < warmup:
        return x / warmup
    if schedule == "linear":
        return (1.0 - x) / (1.0 - warmup)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * (x - warmup) / (1.0 - warmup)))
    if schedule == "constant":
        return 1.0
    if schedule == "linear_legacy":
        return 1.0 - x
    raise ValueError(f"schedule is {schedule!r}; legal: linear, cosine, constant, linear_legacy")


def learns_nothing(total_steps: int, warmup: float, schedule: str) -> bool:
    """Whether no update of a run has a multiplier above 0: its only one is at the start of the warm-up."""
    return learning_rate_multiplier(total_steps - 1, total_steps, warmup, schedule) == 0.0
