"""Mixout's linear layer: in training its weights are partly replaced by their anchor."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...random_streams import RandomStream


class _Mix(torch.autograd.Function):
    """``(M W + (1 - M) W0 - p W0) / (1 - p)``, written ``W0 + K (W - W0)`` with K = M / (1 - p).

    Backward multiplies by K, or (``official``) by M alone. Saves K only, which a column mask makes a single row.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, anchor: Tensor, kept: Tensor, official: bool) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.official = official
        return torch.addcmul(anchor, kept, weight - anchor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (kept,) = ctx.saved_tensors
        return grad * ((kept != 0.0) if ctx.official else kept), None, None, None


class MixoutLinear(nn.Linear):
    """``nn.Linear`` with Mixout on its weight; it takes over the parameters of a plain layer.

    Args:
        dense: That layer.
        anchor: (out, in) W0; not a part of ``state_dict``.
        probability: p, share of the weight replaced by its anchor, in [0, 1).
        granularity: Whether an input's column or each entry has a draw of its own.
        official_gradient: Whether the gradient lacks the factor 1 / (1 - p).
        stream: What the masks are drawn from.
    """

    anchor: Tensor

    def __init__(
        self,
        dense: nn.Linear,
        anchor: Tensor,
        probability: float,
        granularity: Literal["column", "element"],
        official_gradient: bool,
        stream: RandomStream,
    ) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=dense.bias is not None, device="meta")
        self.weight, self.bias = dense.weight, dense.bias
        self.register_buffer("anchor", anchor, persistent=False)
        self.probability, self.granularity = probability, granularity
        self.official_gradient, self.stream = official_gradient, stream
        self.train(dense.training)

    def plain(self) -> nn.Linear:
        """Return a plain layer with the same parameters."""
        dense = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        dense.weight, dense.bias = self.weight, self.bias
        return dense.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(input, self.weight_in_use(), self.bias)

    def weight_in_use(self) -> Tensor:
        """Draw the weight of a pass, (out, in); W itself when evaluating."""
        if not self.training or self.probability == 0.0:
            return self.weight
        like = self.weight[:1] if self.granularity == "column" else self.weight  # (1, in) or (out, in)
        kept = self.stream.kept(like, 1.0 - self.probability).to(self.weight.dtype)
        mixed: Tensor = _Mix.apply(self.weight, self.anchor, kept, self.official_gradient)  # type: ignore[no-untyped-call]
        return mixed
