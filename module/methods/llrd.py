"""Layer-wise learning-rate decay (Howard and Ruder, ACL 2018, arXiv 1801.06146): lower layers learn more slowly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checks import CheckedSettings, ShareAbove0
from ..context import MethodContext
from ..method import FineTuningMethod
from ..param_index import ParamIndex, ParamInfo, Role, split_groups


@dataclass(frozen=True, slots=True)
class LLRDSettings(CheckedSettings):
    """Settings of layer-wise learning-rate decay."""

    decay: ShareAbove0 = 0.95
    """Learning rate of a layer over that of the layer above, in (0, 1]; 1 is plain fine-tuning. Zhang et al. 2021,
    arXiv 2006.05987: 0.95."""


class LLRD(FineTuningMethod[LLRDSettings]):
    """Learning rate ``eta decay^k``: k = 0 for head and pooler, 1 for the top layer, L for the lowest, L + 1 below."""

    name = "llrd"
    title = "LLRD"
    rank = -10  # before methods that look at the learning rates

    def param_groups(self, context: MethodContext, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Give each layer its own groups."""
        divided = split_groups(groups, context.params, lambda info: _steps_down(info, context.params))
        return [{**group, "lr": group["lr"] * self.settings.decay**steps} for steps, group in divided]


def _steps_down(info: ParamInfo, index: ParamIndex) -> int:
    """Steps from the head down to a parameter."""
    if info.layer is not None:
        return index.num_layers - info.layer
    if info.role == Role.EMBEDDINGS:
        return index.num_layers + 1
    return index.num_layers if info.role == Role.ENCODER else 0  # DeBERTa's convolution joins the lowest layer
