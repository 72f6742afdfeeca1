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


def distillation_loss(
    criterion: LossCriterion, logits: Tensor, teacher: Tensor, reduction: Reduction, temperature: float = 1.0
) -> Tensor:
    """Distance of logits from a teacher's, p = softmax(teacher / T), q = softmax(logits / T).

    MseCriterion is the mean over the classes of the squared differences of the logits themselves (MT-DNN's default).
    CeCriterion is ``-T^2 sum_k p_k log q_k`` (Hinton et al. 2015: T^2 keeps the size of the gradient), KlCriterion
    ``T^2 KL(p || q)``, with the same gradient, and SymKlCriterion ``T^2 (KL(p || q) + KL(q || p))``.

    Args:
        criterion: one of the four.
        logits: (B, K).
        teacher: (B, K), without gradient.
        reduction: as of :func:`task_loss`.
        temperature: T > 0.

    Returns:
        () float32, or (B,) without a reduction.
    """
    z, t = logits.float(), teacher.float()
    if criterion is LossCriterion.MseCriterion:
        each = (z - t).square().mean(dim=-1)
    else:
        log_q, log_p = F.log_softmax(z / temperature, dim=-1), F.log_softmax(t / temperature, dim=-1)
        p = log_p.exp()
        if criterion is LossCriterion.CeCriterion:
            each = -(p * log_q).sum(dim=-1)
        elif criterion is LossCriterion.KlCriterion:
            each = (p * (log_p - log_q)).sum(dim=-1)
        else:
            each = ((p - log_q.exp()) * (log_p - log_q)).sum(dim=-1)
        each = temperature**2 * each
    return each if reduction == "none" else each.sum() if reduction == "sum" else each.mean()
