"""BitFit (Ben Zaken et al., ACL 2022, arXiv 2106.10199): of the pretrained parameters only the biases are trained."""

from __future__ import annotations

from ..context import MethodContext
from ..method import FineTuningMethod, NoSettings


class BitFit(FineTuningMethod[NoSettings]):
    """The pretrained biases, those of layer norms included, and all new parameters are trained; the rest is frozen."""

    name = "bitfit"
    title = "BitFit"
    plain_pass = True

    def setup(self, context: MethodContext) -> None:
        """Freeze the other parameters."""
        for info in context.params:
            if info.pretrained:
                info.parameter.requires_grad_(info.is_bias)
