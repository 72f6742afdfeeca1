"""Losses: every reduction of the project in one place, in float32 also under autocast.

Legend: B examples, K classes.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from data_utils.task_def import LossCriterion, TaskDef

Reduction = Literal["sum", "mean", "none"]


def task_loss(task_def: TaskDef, logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Loss of a task over a batch.

    Args:
        task_def: says which loss: cross-entropy of the classes, or squared error of the one score.
        logits: (B, K); K = 1 for squared error.
        labels: (B,) int64 classes or float scores.
        reduction: "mean" over the B examples, or their "sum" (gradient accumulation divides by the examples of the
            whole step, so that it equals the large batch when its parts differ in size), or "none" for one by one.

    Returns:
        () float32, or (B,) without a reduction.
    """
    if task_def.loss is LossCriterion.MseCriterion:
        # (B, 1) against (B,) would broadcast to (B, B).
        return F.mse_loss(logits[:, 0].float(), labels.float(), reduction=reduction)
    return F.cross_entropy(logits.float(), labels, reduction=reduction)
