"""Component-wise gradient norm clipping (Yang and Ma, EMNLP 2022, arXiv 2210.10325): each tensor's norm on its own."""

from dataclasses import dataclass

from ..context import MethodContext
from ..method import FineTuningMethod


@dataclass(frozen=True, slots=True)
class ComponentClipSettings:
    """Settings of component-wise clipping.

    Raises:
        ValueError: If the norm is not above 0.
    """

    max_norm: float = 1.0
    """c, above 0: the largest norm of one tensor's gradient. The authors search 0.01, 0.05, 0.1, 0.5, 1 and 5."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not self.max_norm > 0.0:
            raise ValueError(f"Invalid max_norm: {self.max_norm}: a number above 0 is needed")


class ComponentClip(FineTuningMethod):
    """``g_P <- g_P min(1, c / (||g_P|| + 1e-6))`` for every tensor P, weights and biases apart.

    It takes the place of the global clipping: its recipe switches that off (``global_grad_clipping: 0``).
    """

    name = "component_clip"
    Settings = ComponentClipSettings
    rank = 10  # before masks: Child-Tuning's are applied to clipped gradients

    def after_backward(self, context: MethodContext) -> None:
        """Clip; tensors below the norm keep their bits."""
        import torch

        from ..row_sparse import gradient_values

        found = (gradient_values(info.parameter) for info in context.params)
        values = [gradient for gradient in found if gradient is not None]
        norms = torch.stack(torch._foreach_norm(values))  # (number of tensors,)
        factors = torch.clamp(self.settings.max_norm / (norms + 1e-6), max=1.0)
        torch._foreach_mul_(values, list(factors.unbind()))

    @property
    def needs_dense_gradients(self) -> bool:
        """No: a row-sparse gradient has the same norm, each row once."""
        return False
