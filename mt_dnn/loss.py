"""Losses: every reduction of the project in one place, in float32 also under autocast.

Legend: B examples, K classes.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from data_utils.task_def import LossCriterion, TaskDef

Reduction = Literal["sum", "mean", "none"]


def task_loss(
    task_def: TaskDef,
    logits: Tensor,
    labels: Tensor,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Loss of a task over a batch.

    Args:
        task_def: says which loss: cross-entropy of the classes, or squared error of the one score.
        logits: (B, K); K = 1 for squared error.
        labels: (B,) int64 classes or float scores.
        reduction: "mean" over the B examples, or their "sum" (gradient accumulation divides by the examples of the
            whole step, so that it equals the large batch when its parts differ in size), or "none" for one by one.
        label_smoothing: e in [0, 1) of cross-entropy: the target is 1 - e of the label and e / K of every class.
        class_weights: (K,) float32 of cross-entropy: factors of the target's classes.

    Returns:
        () float32, or (B,) without a reduction.
    """
    if task_def.loss is LossCriterion.MseCriterion:
        # (B, 1) against (B,) would broadcast to (B, B).
        return F.mse_loss(logits[:, 0].float(), labels.float(), reduction=reduction)
    if class_weights is not None and reduction == "mean":  # torch would divide by the sum of the labels' weights
        return task_loss(task_def, logits, labels, "sum", label_smoothing, class_weights) / len(labels)
    return F.cross_entropy(
        logits.float(), labels, weight=class_weights, reduction=reduction, label_smoothing=label_smoothing
    )
