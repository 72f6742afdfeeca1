"""Component-wise gradient norm clipping (Yang and Ma, EMNLP 2022, arXiv 2210.10325): each tensor's norm on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..checks import CheckedSettings, Range
from ..clipping import gradient_values
from ..context import MethodContext
from ..lazy import torch
from ..method import FineTuningMethod


@dataclass(frozen=True, slots=True)
class ComponentClipSettings(CheckedSettings):
    """Settings of component-wise clipping."""

    max_norm: Annotated[float, Range(lambda value: value > 0.0, "a number above 0")] = 1.0
    """c, above 0: the largest norm of one tensor's gradient. The authors search 0.01, 0.05, 0.1, 0.5, 1 and 5."""


class ComponentClip(FineTuningMethod[ComponentClipSettings]):
    """``g_P <- g_P min(1, c / (||g_P|| + 1e-6))`` for every tensor P, weights and biases apart.

    It takes the place of the global clipping: its recipe switches that off (``global_grad_clipping: 0``).
    """

    name = "component_clip"
    title = "component clipping"
    rank = 10  # before masks: Child-Tuning's are applied to clipped gradients
    needs_dense_gradients = False  # a row-sparse gradient has the same norm, each row once

    def after_backward(self, context: MethodContext) -> None:
        """Clip; tensors below the norm keep their bits."""
        found = (gradient_values(info.parameter) for info in context.params)
        values = [gradient for gradient in found if gradient is not None]
        norms = torch.stack(torch._foreach_norm(values))  # (number of tensors,)
        factors = torch.clamp(self.settings.max_norm / (norms + 1e-6), max=1.0)
        torch._foreach_mul_(values, list(factors.unbind()))
