"""Clipping of the global gradient norm."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .lazy import torch


def clip_gradients(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale all gradients so that their joint 2-norm is at most ``max_norm``, as torch's ``clip_grad_norm_`` does.

    Row-sparse gradients count each row once. On the CPU gradients that are small enough are not touched; on other
    devices they are multiplied by one, because looking at the norm would make the host wait.

    Args:
        parameters: Those without a gradient are left out.
        max_norm: Above 0.

    Returns:
        () the norm before clipping.
    """
    values = _all_values(parameters)
    norm = torch.nn.utils.get_total_norm(values)
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    if norm.device.type != "cpu" or float(scale) != 1.0:
        torch._foreach_mul_(values, scale)
    return norm


def clip_as_the_step(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Clip by the norm and the factor that a step which measures itself uses, to the bit.

    So a run in which somebody looks at the gradients before the step is the same run.

    Args:
        parameters: On the CPU; those without a gradient are left out.
        max_norm: Above 0.

    Returns:
        () the norm before clipping.
    """
    from .kernels.host_step import clipping_factor, sum_squares  # torch

    values = [value for value in _all_values(parameters) if value.numel()]
    norm, factor = clipping_factor(sum_squares([value.float().contiguous() for value in values]), max_norm)
    if factor != 1.0 and not math.isnan(norm):  # what is no number is told by the step
        torch._foreach_mul_(values, float(factor))
    return torch.tensor(norm, dtype=torch.float32, device="cpu")


def clip_in_step(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Make an optimizer's next step divide the gradients by what clipping asks for; they themselves stay.

    This saves a pass over all gradients. Its kernels must read ``optimizer.grad_scale``, as this package's do, and
    nobody else may look at the gradients before the step. Delete ``grad_scale`` behind it.

    Args:
        optimizer: Of this package.
        parameters: All that it trains.
        max_norm: Above 0.

    Returns:
        () the norm before clipping.
    """
    norm = torch.nn.utils.get_total_norm(_all_values(parameters))
    # Of a huge norm the quotient fits in float64 alone, which the CPU reads as well.
    scale = torch.clamp(((norm.double() if norm.device.type == "cpu" else norm) + 1e-6) / max_norm, min=1.0)
    # Of gradients that are not finite the step itself tells which.
    optimizer.grad_scale = torch.nan_to_num(scale, nan=1.0, posinf=torch.inf)  # type: ignore[attr-defined]
    return norm


def measures_itself(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor]) -> bool:
    """Whether an optimizer's steps can find the norm of these parameters' gradients and clip to it, without a pass.

    They do where ``max_norm`` is set on the optimizer, and leave the norm before clipping there as ``norm``. They read
    all gradients on the CPU anyway.
    """
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    given = [*parameters]
    trained = {id(parameter) for parameter in given if parameter.requires_grad}
    on_cpu = all(parameter.device.type == "cpu" for parameter in given)
    return on_cpu and trained <= own <= {*map(id, given)}


def _all_values(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [found for parameter in parameters if (found := gradient_values(parameter)) is not None]


def gradient_values(parameter: torch.Tensor) -> torch.Tensor | None:
    """Return the values of a parameter's gradient as one dense tensor, to be measured or changed in place.

    A row-sparse gradient gives the values of its rows, each row once.
    """
    gradient = parameter.grad
    if gradient is None or gradient.layout == torch.strided:
        return gradient
    if not gradient.is_coalesced():  # summed over several backward passes
        gradient = parameter.grad = gradient.coalesce()
    return gradient.values()
