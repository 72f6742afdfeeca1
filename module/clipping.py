"""Clipping of the global gradient norm."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from .row_sparse import gradient_values


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that their joint 2-norm is at most ``max_norm``, as torch's ``clip_grad_norm_`` does.

    Row-sparse gradients count each row once. On the CPU gradients that are small enough are not touched; on other
    devices they are multiplied by one, because looking at the norm would make the host wait.

    Args:
        parameters: Those without a gradient are left out.
        max_norm: Above 0.

    Returns:
        () the norm before clipping.
    """
    values = [found for parameter in parameters if (found := gradient_values(parameter)) is not None]
    norm = get_total_norm(values)
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    if norm.device.type != "cpu" or float(scale) != 1.0:
        torch._foreach_mul_(values, scale)
    return norm
