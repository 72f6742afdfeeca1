"""PATS's noise on other entries: the same amount, spread evenly or shuffled."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...kernels.backend import on_device
from ...kernels.engine import Engine
from ...kernels.guard import address
from ...kernels.member import Member
from ...kernels.state import SENSITIVITY, STEP
from ...pats import PATS
from ...seeds import stream_seed

SPREADS = ("uniform", "shuffled")


class SpreadNoise(PATS):
    """PATS with its noise on other entries, for parameters on the CPU.

    Arguments are those of :class:`module.pats.PATS`, and ``spread``: ``"uniform"``, the same amount per tensor with one
    size for all entries, or ``"shuffled"``, the same sizes on other entries.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], *, spread: str, **settings: Any) -> None:
        if spread not in SPREADS:
            raise ValueError(f"Invalid spread: {spread!r}: one of {', '.join(SPREADS)} is needed")
        self.spread = spread
        super().__init__(named_parameters, **settings)

    def _new_engine(self) -> Engine:
        return Engine((STEP,), self._spread)

    def _members(self, optimizer: Optimizer) -> list[Member]:
        members = super()._members(optimizer)
        if any(on_device(member.parameter) for member in members):
            raise NotImplementedError(f"spread {self.spread!r} is for parameters on the CPU: move the model there")
        return members

    def _spread(self, rows: np.ndarray, members: Sequence[Member]) -> None:
        if self.spread == "uniform":
            for row, member in zip(rows, members, strict=True):
                self._spread_evenly(row, member.state[SENSITIVITY])
            return
        self._moved = [misplaced(m.state[SENSITIVITY], self.noise_seed, str(m.key)) for m in members]  # read by address
        rows["sensitivity"] = [
            address(member.name, SENSITIVITY, moved, moved.shape, torch.float32, member.parameter.device)
            for member, moved in zip(members, self._moved, strict=True)
        ]

    def _spread_evenly(self, row: np.ndarray, sensitivity: Tensor) -> None:
        """Give every entry of a tensor the root mean square of PATS's sizes.

        With sigma_j of Equation 4, every entry gets (mean of sigma_j^2)^(1/2): the expected squared norm of a tensor's
        noise is PATS's.
        """
        ratio, opened = self.rule.opened(float(row["mean"]), sensitivity)
        even = ratio.clamp(max=self.rule.cap).masked_fill_(~opened, 0.0).square_().mean(dtype=torch.float64).sqrt()
        # The kernel takes the smaller of mean / sensitivity and the cap: the cap, everywhere.
        row["mean"], row["max_ratio"], row["upper"], row["lower"] = np.inf, float(even), np.inf, -np.inf


def misplaced(sensitivity: Tensor, seed: int, path: str) -> Tensor:
    """Return a flat copy of the sensitivities of a tensor, moved along by an offset that is fixed for the run.

    Noise by these has PATS's sizes, each on another entry than the one it was worked out for.
    """
    n = sensitivity.numel()
    offset = 1 + stream_seed(seed, f"spread/{path}") % (n - 1) if n > 1 else 0
    return sensitivity.flatten().roll(offset)
